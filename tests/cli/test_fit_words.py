"""One line says why a training ended early, and which state of the run is tested."""

import pytest
from lightning.pytorch.callbacks import EarlyStopping

from datamodules import Digits
from recipes import Supervised
from recipes.callbacks.running.best_checkpoint import BestCheckpoint
from recipes.cli.fit_words import how_it_ended
from recipes.nn import ConvNet
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize(
    ("stopping", "reason"),
    [
        ({"patience": 2, "min_delta": 100}, "after epoch 3: val/loss did not improve 2 times in a row"),
        ({"stopping_threshold": 100}, "after epoch 1: val/loss reached its stopping_threshold"),
        ({"divergence_threshold": 0}, "after epoch 1: val/loss passed its divergence_threshold"),
        ({"patience": 9}, None),
    ],
)
def test_early_stopping_is_named_with_its_epoch_measure_and_checkpoint(stopping, reason, tmp_path):
    best = BestCheckpoint(tmp_path)
    callbacks = [EarlyStopping("val/loss", **stopping), best]
    trainer = quiet_trainer(max_epochs=4, limit_train_batches=1, limit_val_batches=1, callbacks=callbacks)
    trainer.fit(Supervised(ConvNet((4,)), num_classes=10), datamodule=Digits(size=8, batch_size=16))
    line = how_it_ended(trainer, best.file)
    assert "best.ckpt is taken: it has the best val/loss of the run" in line
    assert ("EarlyStopping" in line) == (reason is not None)
    assert line.startswith(f"EarlyStopping ended the training {reason}; " if reason else str(tmp_path))
