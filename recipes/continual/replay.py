from collections.abc import Callable

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules import TaskBatch, Tasks
from losses.precision import at_least_float32
from recipes.augment import Views
from recipes.continual.base import ContinualRecipe
from recipes.evaluation.features import extract
from recipes.nn import Encoder, ReplayBuffer

_DRAW, _VIEW = 1, 2  # what else than the views of a batch (0) random numbers are drawn for


class ReplayRecipe(ContinualRecipe):
    """Base of the recipes that store images of past tasks and replay them during a new task.

    The buffer stores images of a task when the task ends. Replayed images get a new view each time.

    Args:
        buffer: storage for images of past tasks.
        replay_batch_size: number of images of past tasks in a step over all devices together, >= 1; fewer if the buffer
            has fewer. If null, uses the batch size.
        Other arguments: see ``ContinualRecipe``.

    Raises:
        ValueError: if ``replay_batch_size`` is not positive.
    """

    reads_old_heads = True

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        buffer: ReplayBuffer,
        optimizer: OptimizerCallable,
        replay_batch_size: int | None = None,
        views: Views | None = None,
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, tasks, optimizer, views, scheduler, lr_batch_size)
        if replay_batch_size is not None and replay_batch_size < 1:
            raise ValueError(
                f"replay_batch_size is {replay_batch_size}: it must be at least 1; null takes as many as the batch has"
            )
        self.replay_batch_size = replay_batch_size
        self.buffer = buffer

    def end_task(self) -> None:
        """Takes images of the task into the buffer."""
        self.keep()

    def keep(self) -> Tensor:
        """Takes images of the task that is learned now into the buffer; returns their rows [n]."""
        train, feature = self.data.splits.train, None
        index = self.data.positions(train, self.task)
        label = train.label[index]
        if self.buffer.policy == "herding":
            images = self.data.in_order(train, index)
            feature, label, index = extract({"self": self}, images, self.trainer, next(self.parameters()).dtype)["self"]
        return self.buffer.add(train.images, index, label, self.task, self.seed, feature)

    def replays(self, batch: TaskBatch) -> int:
        """How many images of past tasks go with a batch, over all devices together."""
        return self.replay_batch_size or len(batch.index) * self.trainer.world_size

    def draw(self, batch: TaskBatch, batch_idx: int, purpose: int = _DRAW) -> Tensor:
        """Draws images of past tasks for a step: rows of the buffer [n], the same on every device.

        Args:
            batch: of the step.
            batch_idx: its number in the epoch.
            purpose: another one has other images drawn.
        """
        return self.buffer.draw(self.key(batch, purpose).fold_in(batch_idx), self.replays(batch))

    def past(self, rows: Tensor, batch: TaskBatch) -> TaskBatch:
        """Images of past tasks, to go with a batch: rows [n] of the buffer; none while it is empty."""
        return self.kept(rows) if len(self.buffer) else TaskBatch(*(part[:0] for part in batch))

    def kept(self, rows: Tensor) -> TaskBatch:
        """The images of rows [n] of the buffer, which must not be empty."""
        buffer = self.buffer
        return TaskBatch(buffer.image[rows], buffer.label[rows], buffer.index[rows], buffer.task[rows])

    def replayed_view(self, past: TaskBatch, batch_idx: int) -> Tensor:
        """A new view of images of past tasks [n, C, H, W]."""
        return self.view(past, batch_idx, _VIEW)

    def of_rows(self, rows: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies a function to rows of the buffer, a batch at a time.

        Args:
            rows: int64 [N], at least one.
            function: maps rows [n] to a tensor [n, ...].

        Returns:
            [N, ...], at least float32; that of the first device on all, should their running statistics differ.
        """
        of_all = torch.cat([function(part) for part in rows.split(self.data.batch_size)])
        return self.gather(at_least_float32(of_all))[: len(rows)]
