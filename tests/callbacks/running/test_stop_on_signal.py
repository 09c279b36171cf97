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


def fit_and_test(trainer, ckpt_path=None):
    recipe, data = Supervised(MLP(8, hidden=(4,)), num_classes=10), Digits(size=8, batch_size=600)
    trainer.fit(recipe, data, ckpt_path=ckpt_path)
    trainer.test(recipe, data)


def stopped(hook, number, folder, ckpt_path=None):
    """Runs until the signal; returns the last step, and the code that the process leaves with."""
    checkpoint = Checkpoint()
    checkpoint.dirpath = str(folder)
    with Signals() as signals:
        callbacks = [Send(hook, number), checkpoint, StopOnSignal(signals)]
        options = {"max_epochs": 1, "limit_val_batches": 0, "enable_checkpointing": True, "callbacks": callbacks}
        trainer = quiet_trainer(default_root_dir=folder, **options)
        with pytest.raises(Interrupted) as end:
            fit_and_test(trainer, ckpt_path)
    signals.tell()
    return trainer.global_step, end.value.code


@pytest.mark.parametrize("hook", ["on_train_end", "on_test_start", "on_test_batch_start", "on_test_end"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_after_training_the_process_says_where_all_is_and_how_to_go_on(hook, number, tmp_path, capsys):
    path = tmp_path / "last.ckpt"
    step, code = stopped(hook, number, tmp_path)
    assert code == 128 + number
    assert path.is_file()
    line = f": the whole training is in {path}; 'recipes fit --ckpt_path {path}' goes on\n"
    assert f"recipes: {number.name} after step {step}{line}" in capsys.readouterr().err
    if hook != "on_train_end":  # the run that goes on trains nothing
        assert stopped(hook, number, tmp_path / "again", path) == (step, code)
        assert line in capsys.readouterr().err
