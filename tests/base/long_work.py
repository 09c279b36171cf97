"""What test_together.py runs in two processes, which wait for each other for a second, except together."""

import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import torch

from recipes.base.together import Together
from recipes.callbacks.reporting.files import picture_directory
from tests.helpers.training import quiet_trainer

SECONDS = 1.0


def impatient(folder: Path) -> Together:
    """Joins the processes anew, with a limit of a second for all exchanges."""
    rank = torch.distributed.get_rank()
    torch.distributed.destroy_process_group()
    limit = timedelta(seconds=SECONDS)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    return Together(SimpleNamespace(world_size=2, global_rank=rank))


def longer_than_the_limit() -> float:
    time.sleep(1.5 * SECONDS)
    return 7.0


def wait_together(folder: Path) -> tuple[float, list[int]]:
    together = impatient(folder)
    found = together.of_first(longer_than_the_limit)
    if together.rank == 0:
        longer_than_the_limit()  # such as to draw
    picture_directory(quiet_trainer(2))
    other = Together(SimpleNamespace(world_size=2, global_rank=together.rank))
    return found, other.results([lambda number=number: number + 10 * together.rank for number in range(3)])


def wait_as_others_do(folder: Path) -> str:
    together = impatient(folder)
    if together.rank == 0:
        longer_than_the_limit()
        return ""
    try:
        torch.distributed.barrier()
    except RuntimeError as error:
        return str(error)
    return ""


def fail_on_the_second(folder: Path) -> str:
    together = impatient(folder)
    try:
        together.results([lambda: 1, _fail])
    except ValueError as error:
        return str(error)
    return ""


def _fail() -> None:
    raise ValueError("out of luck")
