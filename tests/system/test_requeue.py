"""A job that SLURM starts once more, after its requeue signal, ends with the bits of one that was left in peace."""

import os
import signal
from pathlib import Path

import pytest
from lightning.pytorch import Callback

from tests.helpers.slurm import run_job
from tests.system.exactness import OPTIONS, Run, arguments
from tests.system.test_signals import assert_goes_on

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class TimeIsOver(Callback):
    """Sends SIGUSR1 to every task, but not at the same batch.

    Args:
        step: number of the optimiser step after which it is sent; none is if it is below 0.
    """

    def __init__(self, step: int = -1) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        restarted = "SLURM_RESTART_COUNT" in os.environ
        if trainer.global_step == self.step + trainer.global_rank and not restarted:
            os.kill(os.getpid(), signal.SIGUSR1)


def fit(runs, step, **environment):
    """Runs the job: its directories by time, what the tasks print, and their codes."""
    options = {"trainer.devices": 2, "trainer.strategy": "ddp", "checkpoint.every_n_train_steps": "null"}
    options |= {"trainer.max_steps": 11}
    options |= {"trainer.callbacks": f"{__name__}.TimeIsOver", "trainer.callbacks.step": step}
    args = arguments("byol-digits", runs, OPTIONS, options)
    lines, codes = run_job(args, runs.parent / "output", seconds=100, **environment)
    return [Run(path.parent) for path in sorted(runs.glob("*/*/metrics.csv"))], sum(lines, []), codes


def test_a_requeued_job_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    asked = tmp_path / "asked"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")

    (stopped,), lines, codes = fit(tmp_path / "runs", step=8)
    assert codes == [128 + signal.SIGUSR1] * 2
    assert asked.read_text() == "requeue 7\n"
    assert [line for line in lines if "recipes: job 7 is requeued" in line]
    assert not [*Path(tmp_path).rglob("hpc_ckpt_*")]

    (first, resumed), lines, codes = fit(tmp_path / "runs", step=8, SLURM_RESTART_COUNT="1")
    assert first.directory == stopped.directory
    assert codes == [0, 0]
    assert [line for line in lines if f"job 7 was restarted: the run resumes from {stopped.path}" in line]

    (whole,), _, codes = fit(tmp_path / "whole", step=-9)
    assert codes == [0, 0]
    assert_goes_on(stopped, resumed, whole)
    assert asked.read_text() == "requeue 7\n"
