"""Where a run is: its steps, and how they are counted after a resume with another batch size."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from recipes.optim import RunSchedule

if TYPE_CHECKING:
    from recipes.base.recipe import Recipe


class RunPosition:
    """What Lightning does not know of the position in a resumed run.

    Attributes:
        ahead: how many more steps the run has done than Lightning has counted.
        total: number of steps of the whole run, if it was resumed with another batch size.
    """

    def __init__(self) -> None:
        self.ahead = 0
        self.total: int | None = None

    def resume(self, recipe: "Recipe", saved: dict[str, Any], had_schedule: bool) -> None:
        """Moves a resumed run to the share of its length that is done, measured in images.

        With the batch size, the accumulation and the data of the checkpoint, the share follows from the number of
        steps. Otherwise a step has another number of images, and the steps done are counted anew.

        Args:
            recipe: recipe of the run.
            saved: the position in the checkpoint; empty for a checkpoint of an earlier version.
            had_schedule: whether the run of the checkpoint had a schedule of ``recipes.optim``.
        """
        trainer = recipe.trainer
        if math.isinf(trainer.num_training_batches) or not 0 < recipe.steps_left < math.inf:
            return
        ratio = _steps_worth(recipe, saved)
        self.ahead = saved.get("steps", recipe.global_step) - recipe.global_step
        schedules = (each.scheduler for each in trainer.lr_scheduler_configs)
        schedule = next((each for each in schedules if isinstance(each, RunSchedule)), None)
        same = ratio == 1 and saved.get("steps_per_epoch", recipe.steps_per_epoch) == recipe.steps_per_epoch
        if same and self.ahead == 0 and (had_schedule or schedule is None):
            return
        done, total = recipe._placed(ratio)
        if schedule is not None:
            schedule.start(total, recipe.steps_per_epoch, step=done)
        size = images_per_step(trainer)
        images = f" of {size} images" if size else ""
        rank_zero_info(f"{done / total:.0%} of the run is done: it resumes at step {done} of {total}{images}")

    def place(self, recipe: "Recipe", ratio: float) -> tuple[int, int]:
        """Returns the steps done and the steps in all, given the steps of this run that one earlier step is worth."""
        done = round(recipe.steps_done * ratio)
        self.ahead = done - recipe.global_step
        self.total = done + int(recipe.steps_left)
        return done, self.total


def position_to_save(recipe: "Recipe") -> dict[str, Any]:
    """The position for a checkpoint: steps done, and the unit that they are counted in."""
    return {
        "steps": recipe.steps_done,
        "steps_per_epoch": recipe.steps_per_epoch,
        "images_per_step": images_per_step(recipe.trainer),
    }


def steps_of_run(trainer: Trainer) -> int:
    """Number of optimiser steps of the whole run.

    Raises:
        ValueError: if neither ``max_epochs`` nor ``max_steps`` limits the run, if only ``max_epochs`` does for data
            without length, or if ``limit_train_batches`` is 0.
    """
    _check_limit(trainer)
    total = _estimated_steps(trainer)  # -1: epochs without length
    if total == -1:
        raise ValueError(
            "the training data has no length, and the schedule needs that of the run: set trainer.max_steps, or "
            "trainer.limit_train_batches to the number of batches in an epoch"
        )
    if not math.isfinite(total):
        raise ValueError("the schedule needs the length of the run: set trainer.max_epochs or trainer.max_steps")
    return int(total)


def _estimated_steps(trainer: Trainer) -> float:
    if _epoch_lengths(trainer) is None or trainer.max_epochs in (None, -1):
        return trainer.estimated_stepping_batches
    by_epochs = steps_between(trainer, 0, max(trainer.max_epochs, 1))
    return by_epochs if trainer.max_steps == -1 else min(by_epochs, trainer.max_steps)


def steps_until(trainer: Trainer, epoch: int) -> int:
    """Computes the number of optimiser steps from now to the start of an epoch."""
    batch = trainer.fit_loop.epoch_loop.batch_progress
    done = 0 if batch.is_last_batch else batch.current.completed  # in this epoch
    left = max(trainer.num_training_batches - done, 0)
    this_epoch = math.ceil(left / trainer.accumulate_grad_batches)
    if epoch <= trainer.current_epoch:
        return 0
    return this_epoch + steps_between(trainer, trainer.current_epoch + 1, epoch)


def steps_left(trainer: Trainer) -> float:
    """Number of optimiser steps from now to the end of the run; infinite for a run without end."""
    by_steps = math.inf if trainer.max_steps == -1 else trainer.max_steps - trainer.global_step
    if trainer.max_epochs in (None, -1) or math.isinf(trainer.num_training_batches):
        return by_steps
    return min(by_steps, steps_until(trainer, trainer.max_epochs))


def _check_limit(trainer: Trainer) -> None:
    if not (limit := trainer.limit_train_batches):
        raise ValueError(f"trainer.limit_train_batches is {limit}: training needs at least one batch")


def steps_between(trainer: Trainer, first: int, stop: int) -> int:
    """Number of optimiser steps in the epochs of a run, from ``first`` on and before ``stop``.

    All epochs are as long as the present one, unless the DataModule has ``epoch_lengths``, as a ``TaskSequence`` has.
    A run on data without length counts as one epoch.

    Raises:
        ValueError: if ``limit_train_batches`` is 0: Lightning then never counts them. As ``steps_of_run``, for data
            without length.
    """
    _check_limit(trainer)
    limit, lengths = trainer.limit_train_batches, _epoch_lengths(trainer)
    if lengths is None and math.isinf(trainer.num_training_batches):
        return steps_of_run(trainer)
    counted: list[tuple[int, float]] = [(max(stop - first, 0), trainer.num_training_batches)]
    if lengths is not None:
        counted = [
            (epochs, min(batches, limit) if isinstance(limit, int) else int(batches * limit))
            for epochs, batches in lengths(first, stop)
        ]
    return sum(epochs * math.ceil(batches / trainer.accumulate_grad_batches) for epochs, batches in counted)


def _epoch_lengths(trainer: Trainer) -> Callable[[int, int], list[tuple[int, int]]] | None:
    return getattr(getattr(trainer, "datamodule", None), "epoch_lengths", None)


def share_of_step(trainer: Trainer) -> float:
    """Share of the accumulated batches that this optimiser step has; below 1 only in the last step of an epoch.

    Lightning divides the loss of every batch by ``accumulate_grad_batches``, although the last step may have fewer.
    """
    before = trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
    return (before % trainer.accumulate_grad_batches + 1) / trainer.accumulate_grad_batches


def global_batch_size(trainer: Trainer) -> int:
    """How many images make one optimiser step: the global batch size of the data × accumulated batches.

    Raises:
        ValueError: if the data does not tell its batch size.
    """
    data = getattr(trainer, "datamodule", None)
    batch_size = getattr(data, "batch_size", None)
    if data is None:
        trainer.fit_loop.setup_data()
        of_loader = getattr(trainer.train_dataloader, "batch_size", None)
        batch_size = of_loader and of_loader * trainer.world_size
    if batch_size is None:
        raise ValueError(
            "lr_batch_size scales the learning rate with the batch size, which is unknown for this data: pass a "
            "DataModule to fit, a DataLoader with a batch_size, or lr_batch_size=None"
        )
    return int(batch_size * trainer.accumulate_grad_batches)


def images_per_step(trainer: Trainer) -> int | None:
    """How many images make one optimiser step; None if the loader does not tell its batch size."""
    if hasattr(getattr(trainer, "datamodule", None), "batch_size"):
        return global_batch_size(trainer)
    size = getattr(trainer.train_dataloader, "batch_size", None)
    return size and size * trainer.world_size * trainer.accumulate_grad_batches


def _steps_worth(recipe: "Recipe", saved: dict[str, Any]) -> float:
    """Computes how many steps of this run one step of the checkpoint's run is worth."""
    now = position_to_save(recipe)
    if not saved:
        return (recipe.total_steps - recipe.steps_left) / max(recipe.global_step, 1) if recipe.global_step else 1.0
    images, per_epoch = "images_per_step", "steps_per_epoch"
    if saved[images] and now[images]:
        return saved[images] / now[images]
    return now[per_epoch] / saved[per_epoch]
