"""The words with which a training ends: its errors in one line, and which state of the run is tested."""

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.trainer.connectors import checkpoint_connector
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import recipes
from datamodules import TaskSequence
from recipes.base import resume
from recipes.cli.changes import refusal
from recipes.errors import CheckpointMismatch
from recipes.nn.encoders.files import about_checkpoint

_RESUMING = ("on_load_checkpoint", "on_fit_start", "on_train_start")  # of recipes.base.resume
_WHY = {
    EarlyStoppingReason.STOPPING_THRESHOLD: "reached its stopping_threshold",
    EarlyStoppingReason.DIVERGENCE_THRESHOLD: "passed its divergence_threshold",
    EarlyStoppingReason.NON_FINITE_METRIC: "was not finite",
}


@contextmanager
def words_of_fit(trainer: Trainer, changed: Mapping[str, str], ckpt_path: str | None) -> Iterator[None]:
    """Translates errors of a training that the user can mend.

    Args:
        trainer: Trainer that trains.
        changed: options that a resume has changed, by name.
        ckpt_path: checkpoint that the training resumes from.

    Raises:
        ValueError: for a checkpoint that does not fit, with the options that have changed, or that is damaged; and for
            a schedule whose measure is not there.
    """
    try:
        yield
    except CheckpointMismatch as error:
        raise ValueError(refusal(changed, error)) from None
    except (RuntimeError, MisconfigurationException) as error:
        found = re.search(r"conditioned on metric `?([^\s`]+)`? which is not available", str(error))
        if found is None:
            raise
        known = ", ".join(sorted(trainer.callback_metrics))
        raise ValueError(
            f"monitor is {found[1]}, which is not measured in this run: set it to one of {known} (option monitor of "
            "the schedule or the callback)"
        ) from error
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        if not ckpt_path or not _while_restoring(error):
            raise
        what = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"{ckpt_path} is damaged, so the run cannot be resumed ({what}): use another checkpoint"
        ) from error


def _while_restoring(error: Exception) -> bool:
    """Whether a library or the resume stumbled over what a checkpoint holds; errors in our words do not count."""
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, ValueError) and Path(frames[-1].co_filename).is_relative_to(Path(recipes.__file__).parent):
        return False
    return any(
        (code.co_filename == checkpoint_connector.__file__ and re.match("resume_start|_?restore", code.co_name))
        or (code.co_filename == resume.__file__ and code.co_name in _RESUMING)
        for code in frames
    )


def how_it_ended(trainer: Trainer, best: Path | None) -> str:
    """Says in one line which state of a run is tested, and why the training ended before its last epoch, if it did.

    Args:
        trainer: Trainer that has trained.
        best: best checkpoint of the run, if it keeps one.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if best is not None:
        state = about_checkpoint(best)
    else:
        in_tasks = isinstance(data, TaskSequence)
        why = "it has learned all tasks" if in_tasks else "no callback monitors a validation measure"
        state = f"the last state of the run is tested, because {why}"
    return "; ".join([*_early_stops(trainer), state])


def _early_stops(trainer: Trainer) -> Iterator[str]:
    for callback in trainer.early_stopping_callbacks:
        if callback.stopped_epoch + 1 == trainer.current_epoch:
            patience = f"did not improve {callback.patience} times in a row"
            why = _WHY.get(callback.stopping_reason, patience)
            yield f"EarlyStopping ended the training after epoch {trainer.current_epoch}: {callback.monitor} {why}"
