"""The epochs of a sequence of tasks, and their effect on the Trainer."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

from lightning.pytorch import Trainer


class TaskEpochs:
    """To which task each epoch of a run belongs.

    Args:
        per_task: how many epochs each task has, at least 1 each.

    Attributes:
        per_task: the same.
        total: how many epochs all tasks have together.
    """

    def __init__(self, per_task: Sequence[int]) -> None:
        self.per_task = tuple(per_task)
        self._ends = list(accumulate(per_task))  # the epochs in which each task is over
        self.total = self._ends[-1]

    def task_of(self, epoch: int) -> int:
        """The number of the task that an epoch of the run belongs to; after the end, that of the last."""
        return min(bisect_right(self._ends, epoch), len(self.per_task) - 1)

    def epoch_in_task(self, epoch: int) -> int:
        """How many epochs of its task come before an epoch of the run."""
        task = self.task_of(epoch)
        return epoch - self._ends[task] + self.per_task[task]

    def of_each_task(self, first: int, stop: int) -> list[int]:
        """How many epochs of the run, from ``first`` on and before ``stop``, belong to each task."""
        starts = [0, *self._ends[:-1]]
        ends = [*self._ends[:-1], max(stop, self.total)]  # after the end, an epoch belongs to the last task
        return [max(min(stop, end) - max(first, start), 0) for start, end in zip(starts, ends)]

    def is_last_of_task(self, epoch: int) -> bool:
        """Whether an epoch of the run is the last of its task."""
        return epoch + 1 in self._ends


def follow_tasks(trainer: Trainer, total_epochs: int) -> Callable[[], None]:
    """Has a Trainer ask for the loader of every epoch, and end with the last task.

    Its ``max_epochs`` is set to the epochs of all tasks, unless it is smaller or ``max_steps`` is given.

    Returns:
        A function that gives the Trainer the settings back that it had.
    """
    given, reloads = trainer.max_epochs, trainer.reload_dataloaders_every_n_epochs  # type: ignore[attr-defined]
    # Lightning counts a loader's batches when it is handed over, and tasks differ in length.
    trainer.reload_dataloaders_every_n_epochs = 1  # type: ignore[attr-defined]
    # With max_steps, Lightning counts an epoch twice that a run was killed at the end of.
    if trainer.max_steps == -1 and (given is None or not 0 <= given <= total_epochs):
        trainer.fit_loop.max_epochs = total_epochs
    return partial(_set, trainer, given, reloads)


def _set(trainer: Trainer, max_epochs: int | None, reloads: int) -> None:
    trainer.fit_loop.max_epochs = max_epochs
    trainer.reload_dataloaders_every_n_epochs = reloads  # type: ignore[attr-defined]


def end_epoch_of_killed_run(trainer: Trainer, batches: int) -> None:
    """Has a Trainer see that an epoch was over, if the run was killed after the epoch's last batch.

    Lightning compares the batches that were trained on with those of the next epoch, which may be more.

    Args:
        trainer: that may be resuming.
        batches: how many the next epoch has.
    """
    if trainer.fit_loop.restarting:
        progress = trainer.fit_loop.epoch_loop.batch_progress
        batch = progress.state_dict()["current"]
        if progress.is_last_batch and batch["processed"] == batch["ready"]:
            progress.current.completed = max(progress.current.completed, batches)
