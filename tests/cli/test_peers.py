"""An error of any process of a run is read: it says where it happened, once, and all processes end within 30 s."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from datamodules import ImageFolder
from tests.helpers.slurm import free_port, run_commands, run_job

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

BOUND = 30  # seconds
FIT = [
    *("fit", "--model", "Supervised", "--model.encoder", "ConvNet", "--model.encoder.widths", "[4]", "--name", "run"),
    *("--model.encoder.in_channels", "3", "--model.lr_batch_size", "null", "--data", f"{__name__}.Pictures"),
    *("--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy=ddp"),
    *("--trainer.enable_progress_bar", "false", "--trainer.limit_test_batches", "0", "--trainer.callbacks"),
    f"{__name__}.Failure",
]


class Pictures(ImageFolder):
    """Pictures that some machines do not have.

    Args:
        root: folder.
        absent_on: ranks.
    """

    def __init__(self, root: str = "pictures", absent_on: tuple[int, ...] = ()) -> None:
        super().__init__(f"{root}-absent" if rank_zero_only.rank in absent_on else root, image_size=8, batch_size=4)


class Failure(Callback):
    """Fails after the first batch in one process, while the other one waits in an exchange, or for very long.

    Args:
        rank: number of the process that fails.
        others_sleep: whether the other process does not even come to an exchange.
    """

    def __init__(self, rank: int = -1, others_sleep: bool = False) -> None:
        self.rank, self.others_sleep = rank, others_sleep

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_rank == self.rank:
            raise RuntimeError("the device is lost")
        if self.others_sleep:
            time.sleep(1000)


@pytest.fixture(autouse=True)
def _pictures(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(40):
        path = Path("pictures", "ab"[i % 2], f"{i}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 6 * i, np.uint8)).save(path)


def in_slurm(tmp_path, *options):
    return run_job([*FIT, *options], tmp_path / "output", BOUND)


def errors(lines):
    return [line for line in lines if line.startswith("recipes: error: ")]


def says(line, rank, words):
    return re.fullmatch(rf"recipes: error: rank {rank} on {re.escape(socket.gethostname())}: .*{words}.*", line)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_task_of_slurm_that_does_not_see_the_data_says_so(rank, tmp_path):
    lines, codes = in_slurm(tmp_path, "--data.absent_on", f"[{rank}]")
    (error,) = errors(lines[0] + lines[1])
    assert error in lines[rank]
    assert says(error, rank, "pictures-absent is not there: root must be a folder")
    assert codes == [2, 2]
    assert not Path("runs").exists()
    assert not [line for line in lines[0] + lines[1] if "Traceback" in line]


def test_tasks_that_fail_alike_say_so_once(tmp_path):
    lines, codes = in_slurm(tmp_path, "--data.absent_on", "[0,1]")
    assert len(errors(lines[0] + lines[1])) == 1
    assert codes == [2, 2]


def test_tasks_say_once_that_an_option_is_misspelt(tmp_path):
    lines, codes = in_slurm(tmp_path, "--trainer.max_epoch", "3")
    (error,) = errors(lines[0] + lines[1])
    assert "did you mean 'trainer.max_epochs'?" in error
    assert codes == [2, 2]


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("others", ["false", "true"])
def test_an_error_in_training_is_shown_by_its_process_and_ends_the_other(rank, others, tmp_path):
    options = ["--trainer.callbacks.rank", str(rank), "--trainer.callbacks.others_sleep", others]
    lines, codes = in_slurm(tmp_path, *options)
    (error,) = errors(lines[0] + lines[1])
    assert says(error, rank, "RuntimeError: see the traceback above")
    assert lines[rank].index("RuntimeError: the device is lost") < lines[rank].index(error)
    assert not [line for line in lines[1 - rank] if "Error" in line]
    assert codes == [1, 1]


@pytest.mark.parametrize("launcher", ["lightning", "torchrun"])
def test_rank_1_says_that_it_does_not_see_the_data_whoever_starts_it(launcher):
    command = [sys.executable, "-m", "recipes", *FIT, "--data.absent_on", "[1]"]
    if launcher == "torchrun":
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BOUND + 30, check=False)
    (error,) = errors(ended.stderr.splitlines())
    assert says(error, 1, "pictures-absent is not there: root must be a folder")
    assert not Path("runs").exists()
    if launcher == "lightning":
        assert ended.returncode == 2
    else:  # torchrun prints a summary
        cause = ended.stderr.rpartition("Root Cause")[2]
        assert f"traceback : {error.removeprefix('recipes: error: ')}" in cause
        assert "rank      : 1" in cause


def test_two_machines_share_one_directory_and_a_failure(tmp_path):
    """Lightning's own launcher, started once on each machine."""
    machines = [{"MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "NODE_RANK": str(i)} for i in (0, 1)]
    fit = [*FIT, "--trainer.devices", "1", "--trainer.num_nodes", "2"]
    port = {"MASTER_PORT": str(free_port())}
    lines, codes = run_commands([(fit, {**each, **port}) for each in machines], tmp_path)
    assert codes == [0, 0]
    (directory,) = Path("runs").glob("*/*")
    assert {file.name for file in directory.iterdir()} >= {"metrics.csv", "config.yaml", "checkpoints"}
    assert not [line for line in lines[1] if "run directory" in line]
    port = {"MASTER_PORT": str(free_port())}
    fit = [*fit, "--data.absent_on", "[1]", "--name", "absent"]
    lines, codes = run_commands([(fit, {**each, **port}) for each in machines], tmp_path)
    (error,) = errors(lines[0] + lines[1])
    assert says(error, 1, "pictures-absent is not there")
    assert codes == [2, 2]
    assert [*Path("runs").iterdir()] == [directory.parent]
