"""Restarted jobs of SLURM: their run is resumed from its last checkpoint."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Trainer


def job() -> str | None:
    """The job that this process belongs to, as scontrol names it, such as 123, or 123_4 in an array; None without."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        return f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def earlier_checkpoint(runs: Path, config: str) -> Path | None:
    """The newest checkpoint of a run that this job began before it was restarted.

    Args:
        runs: folder of the directories of runs, whose names end with their job (``run_directory.new_directory``).
        config: configuration of the run, which is that of the earlier run.
    """
    if int(os.environ.get("SLURM_RESTART_COUNT", 0)) == 0:
        return None
    found = [
        checkpoint
        for checkpoint in runs.glob(f"*_job-{job()}/checkpoints/last.ckpt")
        if (file := checkpoint.parents[1] / "config.yaml").is_file() and file.read_text() == config
    ]
    return max(found, key=lambda checkpoint: checkpoint.stat().st_mtime_ns, default=None)


def requeue_signal(trainer: Trainer) -> int | None:
    """The signal by which SLURM tells a run that its time is over, if the run shall be started once more."""
    environment: Any = trainer._accelerator_connector.cluster_environment
    requeues = isinstance(environment, SLURMEnvironment) and environment.auto_requeue
    return environment.requeue_signal if requeues else None


def requeue() -> None:
    """Asks SLURM to start the job of this process once more."""
    command = ["scontrol", "requeue", job() or ""]
    try:
        code = subprocess.call(command)
        problem = f"it ended with code {code}" if code else None
    except OSError as error:
        problem = error.strerror
    result = f"not requeued, because '{' '.join(command)}' failed: {problem}" if problem else "requeued"
    sys.stderr.write(f"recipes: job {command[-1]} is {result}\n")
    sys.stderr.flush()
