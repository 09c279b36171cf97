import os
import signal

import pytest
from lightning.pytorch import Callback

from datamodules import Digits
from recipes import Supervised
from recipes.callbacks import Checkpoint, Interrupted, Signals, StopOnSignal
from recipes.nn import MLP
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore")


class Send(Callback):
    """Sends a signal to this process."""

    def __init__(self, hook, number):
        setattr(self, hook, lambda *_: os.kill(os.getpid(), number))


def fit_and_test(trainer):
    recipe, data = Supervised(MLP(8, hidden=(4,)), num_classes=10), Digits(size=8, batch_size=600)
    trainer.fit(recipe, data)
    trainer.test(recipe, data)


@pytest.mark.parametrize("hook", ["on_train_end", "on_test_start", "on_test_batch_start", "on_test_end"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_training_the_process_says_where_all_is_and_how_to_go_on(hook, number, tmp_path, capsys):
    checkpoint = Checkpoint()
    checkpoint.dirpath = str(tmp_path)
    with Signals() as signals:
        callbacks = [Send(hook, number), checkpoint, StopOnSignal(signals)]
        options = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": True, "callbacks": callbacks}
        trainer = quiet_trainer(default_root_dir=tmp_path, **options)
        with pytest.raises(Interrupted) as end:
            fit_and_test(trainer)
    signals.tell()
    assert end.value.code == 128 + number
    path = tmp_path / "last.ckpt"
    assert path.is_file()
    assert (
        f"recipes: {number.name} after step {trainer.global_step}: the whole training is in {path}; "
        f"'recipes fit --ckpt_path {path}' goes on\n"
    ) in capsys.readouterr().err
