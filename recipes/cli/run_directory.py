"""The directory of a run: one for each, and the same in all of its processes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from recipes.cli.slurm import job

RUN_DIRECTORY = "RECIPES_RUN_DIRECTORY"
CONFIG = "config.yaml"
_made: list[Path] = []  # the directory that this process made last, after those around it


@contextmanager
def nothing_left_if_refused() -> Iterator[None]:
    """Removes the directory that a run has made, and those around it, if the run ends by an error before it trains.

    It then holds nothing, or the configuration alone.
    """
    _made.clear()
    try:
        yield
    except BaseException:
        remove_if_refused()
        raise


def remove_if_refused() -> None:
    """Removes the directory that this process has made, and those around it, if nothing was trained."""
    with suppress(OSError):  # not empty
        if _made and [file.name for file in _made[-1].iterdir()] == [CONFIG]:
            (_made[-1] / CONFIG).unlink()
        while _made:
            _made.pop().rmdir()


def new_directory(parent: Path) -> Path:
    """A directory for this run alone, the same in the processes that this one starts for further devices.

    Its name is the time and, under SLURM, the job: the same job finds the run again when it is restarted.
    Processes that torchrun or SLURM started learn of it from the first when they write: loggers and checkpoints ask it.
    """
    if not is_first() and RUN_DIRECTORY in os.environ:
        return Path(os.environ[RUN_DIRECTORY])
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    of_job = f"_job-{job()}" if job() else ""
    directory, number = parent / f"{time}{of_job}", 1
    while is_first():
        try:
            missing = [folder for folder in (directory, *directory.parents) if not folder.exists()]
            directory.mkdir(parents=True)
            _made[:] = reversed(missing)
            break
        except FileExistsError:  # another run of this second
            number += 1
            directory = parent / f"{time}_{number}{of_job}"
        except OSError as error:
            raise ValueError(
                f"no run directory can be made in {parent} ({error.strerror}): choose other --runs"
            ) from None
    os.environ[RUN_DIRECTORY] = str(directory)
    return directory


def continues_elsewhere(checkpoint: Path, directory: Path) -> str | None:
    """A line with the directory in which a resumed run continues; None if it is beside that of the checkpoint.

    Args:
        checkpoint: checkpoint that the run is resumed from.
        directory: directory of the resumed run.
    """
    folder = checkpoint.absolute().parent
    runs = (folder.parent if folder.name == "checkpoints" else folder).parent.parent
    if runs.resolve() == directory.absolute().parent.parent.resolve():
        return None
    return f"the resumed run continues in {directory}; to keep it beside its first part, add --runs {runs}"


def is_first() -> bool:
    """Whether this is the first of the processes of a run."""
    return rank() == 0


def rank() -> int:
    """The number of this process in its run, from 0, as far as Lightning knows it."""
    return int(getattr(rank_zero_only, "rank", 0))


def know_machine() -> None:
    """Numbers the first process of each further machine: Lightning does so only when there is a Trainer."""
    if is_first():
        numbered: Any = rank_zero_only
        numbered.rank = int(os.environ.get("NODE_RANK", 0))
