"""SIGTERM and SIGINT save within seconds, and the resumed run ends with the bits of one that was left in peace."""

import contextlib
import multiprocessing
import os
import signal
import time
from functools import cache
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from recipes.cli import main
from recipes.cli.run_directory import RUN_DIRECTORY
from tests.helpers.drawing import draw_nothing
from tests.helpers.processes import run
from tests.system.exactness import OPTIONS, STEPS_OF_EPOCH, Run, _leaves, _relative, arguments

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


SAID = "stderr.txt"  # in the folder of the runs


class Send(Callback):
    """Sends a signal to this process.

    Args:
        hook: in which hook; ``read`` is in a worker, while the process waits for the batch.
        epoch: in which epoch, from 0.
        batch: at which batch of it; 0 for hooks without batches.
        number: number of the signal.
        rank: in which process.
        times: how often, at intervals of a second.
    """

    def __init__(self, hook: str = "", epoch: int = 1, batch: int = 0, number: int = 15, rank: int = 0, times: int = 1):
        self.place = hook, epoch, batch
        self.number, self.rank, self.times = number, rank, times

    def setup(self, trainer, pl_module, stage):
        self.trainer = trainer
        if self.place[0] == "read" and stage == "fit":
            train = trainer.datamodule.splits.train
            train.__getitems__ = Stuck(train)

    def reached(self, hook, batch=0):
        if (hook, self.trainer.current_epoch, batch) == self.place and self.trainer.global_rank == self.rank:
            for i in range(self.times):
                time.sleep(1.0 if i else 0.0)
                os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.reached("train", batch_idx)

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not trainer.sanity_checking:
            self.reached("validation", batch_idx)

    def on_test_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.place = (self.place[0], trainer.current_epoch, self.place[2])
        self.reached("test", batch_idx)
        if self.place[0] == "test":
            time.sleep(1000)


class Stuck:
    """Reads batches, but sends SIGTERM to the process that waits for the 17th, and takes very long to read that."""

    def __init__(self, dataset):
        self.dataset, self.reads = dataset, 0

    def __call__(self, indices):
        self.reads += 1
        if self.reads == 17:
            time.sleep(3)
            os.kill(multiprocessing.parent_process().pid, signal.SIGTERM)
            time.sleep(1000)
        return type(self.dataset).__getitems__(self.dataset, indices)


def fit(case, folder, after=None, processes=1, send=None, **changed):
    """Runs ``recipes fit``: the run, and how its processes ended. One that does not end in 200 seconds fails."""
    options = {"trainer.devices": processes, "checkpoint.every_n_train_steps": "null"}
    options |= {name.replace("__", "."): v for name, v in changed.items()}
    options |= {"trainer.strategy": "ddp"} if processes > 1 else {}
    options |= {"ckpt_path": after.path} if after else {}
    options |= {"trainer.callbacks": f"{__name__}.Send"}
    options |= {f"trainer.callbacks.{name}": value for name, value in (send or {}).items()}
    codes = run(ended, arguments(case, folder, OPTIONS, options), processes=processes)
    (metrics,) = Path(folder).glob("*/*/metrics.csv")
    return Run(metrics.parent), codes


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Runs that are left in peace, each made once."""
    return cache(lambda case, processes=1: fit(case, tmp_path_factory.mktemp("whole"), processes=processes)[0])


def assert_goes_on(stopped, resumed, whole):
    """The resumed run ends with the checkpoint of the whole one, and both parts have the rows of the whole."""
    assert 0 < stopped.checkpoint["global_step"] <= resumed.checkpoint["global_step"]
    ours, theirs = (dict(_leaves(one.checkpoint)) for one in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if _relative(ours[name], theirs[name])]
    rows = [_measured(row) for row in stopped.rows + resumed.rows]
    assert rows == [_measured(row) for row in whole.rows]


def _measured(row):
    return {name: value for name, value in row.items() if value and name != "train/data_wait"}


def ended(args):
    os.environ.pop(RUN_DIRECTORY, None)  # of a run in the process that this one was forked for
    draw_nothing()
    folder = Path(next(arg for arg in args if arg.startswith("--runs=")).partition("=")[2])
    folder.mkdir(exist_ok=True)
    try:
        with (folder / SAID).open("a") as file, contextlib.redirect_stderr(file):
            main(args)
    except SystemExit as end:
        return end.code


@pytest.mark.parametrize(
    ("case", "place"),
    [
        ("byol-digits", {"hook": "train", "batch": 4}),
        ("byol-digits", {"hook": "train", "batch": 12}),  # the last of the epoch
        ("byol-digits", {"hook": "validation", "batch": 0}),
        ("derpp-split-digits", {"hook": "train", "batch": 4}),
        ("derpp-split-digits", {"hook": "validation", "batch": 0}),
    ],
)
def test_a_run_that_is_stopped_by_sigterm_goes_on_to_the_same_bits(case, place, whole, tmp_path):
    stopped, codes = fit(case, tmp_path / "stopped", send=place)
    assert codes == [143]
    resumed, codes = fit(case, tmp_path / "resumed", after=stopped)
    assert codes == [None]
    assert_goes_on(stopped, resumed, whole(case))


def test_a_run_that_waits_for_data_stops_at_once(whole, tmp_path):
    changed = {"data__num_workers": 1}
    stopped, codes = fit("byol-digits", tmp_path / "stopped", send={"hook": "read"}, **changed)
    assert codes == [143]
    resumed, _ = fit("byol-digits", tmp_path / "resumed", after=stopped, **changed)
    assert_goes_on(stopped, resumed, whole("byol-digits"))


def test_the_final_evaluation_is_left_at_once_and_the_run_is_saved(tmp_path):
    place = {"hook": "test", "number": int(signal.SIGINT)}
    stopped, codes = fit("byol-digits", tmp_path / "stopped", send=place, trainer__limit_test_batches=1.0)
    assert codes == [130]
    assert stopped.checkpoint["global_step"] == OPTIONS["trainer.max_steps"]
    said = (tmp_path / "stopped" / SAID).read_text()
    assert f"recipes: SIGINT after step {OPTIONS['trainer.max_steps']}: " in said
    assert f"'recipes fit --ckpt_path {stopped.path}' goes on" in said
    again, codes = fit("byol-digits", tmp_path / "again", after=stopped, trainer__limit_test_batches=1.0)
    assert codes == [None]
    assert [name for row in again.rows for name, value in row.items() if value and name.startswith("test/")]


def test_a_second_signal_ends_at_once_and_keeps_the_last_checkpoint(tmp_path):
    place = {"hook": "train", "batch": 4, "times": 2, "number": int(signal.SIGINT)}
    stopped, codes = fit("byol-digits", tmp_path, send=place)
    assert codes == [130]
    assert stopped.checkpoint["global_step"] == STEPS_OF_EPOCH


@pytest.mark.parametrize("hook", ["train", "validation"])
def test_one_of_two_processes_is_told_and_both_stop_with_a_checkpoint(hook, whole, tmp_path):
    place = {"hook": hook, "rank": 1}
    stopped, codes = fit("byol-digits", tmp_path / "stopped", processes=2, send=place)
    assert codes == [143, 143]
    resumed, _ = fit("byol-digits", tmp_path / "resumed", processes=2, after=stopped)
    assert_goes_on(stopped, resumed, whole("byol-digits", processes=2))
