"""Tasks of a job, with the environment that srun gives them."""

import os
import socket
import time
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from recipes.cli import main
from tests.helpers.drawing import draw_nothing
from tests.helpers.processes import started


def run_job(
    args: list[str], output: Path, seconds: float = 30, tasks: int = 2, **environment: str
) -> tuple[list[list[str]], list[int]]:
    """Runs the command in several tasks.

    Args:
        args: of the command.
        output: folder for what the tasks print.
        seconds: in which they have to end.
        tasks: how many, on one machine.
        **environment: further variables.

    Returns:
        The lines that each task printed, and the code that it left with.
    """
    shared = {
        **{"SLURM_JOB_ID": "7", "SLURM_NTASKS": str(tasks), "SLURM_NTASKS_PER_NODE": str(tasks), "SLURM_NNODES": "1"},
        **{"SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())},
        **{"GLOO_SOCKET_IFNAME": "lo", **environment},
    }
    output.mkdir(exist_ok=True)
    numbered = [{**shared, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(tasks)]
    return run_commands([(args, variables) for variables in numbered], output, seconds)


def run_commands(
    commands: list[tuple[list[str], dict[str, str]]], output: Path, seconds: float = 30
) -> tuple[list[list[str]], list[int]]:
    """Runs commands at the same time, each with its arguments and environment; see ``run_job``."""
    end = time.monotonic() + seconds
    files = [output / f"{i}.txt" for i in range(len(commands))]
    processes = [started(_command, *each, output=file) for each, file in zip(commands, files)]
    for process in processes:
        process.join(max(end - time.monotonic(), 0))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    lines = [file.read_text().splitlines() for file in files]
    assert None not in codes, f"a process did not end: {lines}"
    return lines, codes


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _command(args: list[str], environment: dict[str, str]) -> None:
    os.environ.pop("RECIPES_RUN_DIRECTORY", None)  # of a run in the process that this one was forked for
    os.environ |= environment
    rank_zero_only.rank = int(environment.get("SLURM_PROCID", 0))  # as Lightning finds it where it is imported
    draw_nothing()
    main(args)
