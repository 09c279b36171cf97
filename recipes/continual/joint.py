import math

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules import TaskBatch, Tasks
from recipes.augment import Views
from recipes.continual.base import ContinualRecipe
from recipes.continual.task_start import TaskStart
from recipes.nn import Encoder, MultiHead


class Joint(ContinualRecipe):
    """Continual learning: trains on the images of all tasks so far, the upper bound.

    There is no limit on stored data. An epoch of a task is one pass over the images of this task and of all earlier
    tasks, so epochs grow longer from task to task.

    Args:
        fresh: whether each task starts from random weights. If false, it starts from the weights of the previous task
            (warm start, as in Li & Hoiem, 2016, arXiv:1606.09282, where joint training starts from the old network).
        warmup_epochs: number of first epochs of each later task in which only the new head learns, >= 0 (Li & Hoiem,
            2016, Section 3: until convergence). A task that is not longer has a warm-up of a tenth of its epochs.
            Cannot be combined with ``fresh``.
        later_lr_factor: factor on the learning rate in all tasks after the first, > 0 (Li & Hoiem, 2016, Section 3: 0.1
            to 0.02).
        Other arguments: see ``ContinualRecipe``.

    Raises:
        ValueError: if ``warmup_epochs`` or ``later_lr_factor`` is out of its range, or ``fresh`` given with a warm-up.
    """

    reads_old_heads = True

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        fresh: bool = False,
        warmup_epochs: int = 0,
        later_lr_factor: float = 1.0,
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, tasks, optimizer, views, scheduler, lr_batch_size)
        self.fresh = fresh
        self.task_start = TaskStart(warmup_epochs, later_lr_factor)
        if fresh and warmup_epochs:
            raise ValueError(
                f"warmup_epochs is {warmup_epochs}, and a fresh encoder has nothing to keep: leave one of them out"
            )

    def setup(self, stage: str) -> None:
        """Has the data give the images of all tasks up to the one that is learned."""
        super().setup(stage)
        if stage == "fit":
            self.data.deal_earlier_tasks()

    @property
    def bytes_in_data(self) -> int:
        """Bytes of the images of all earlier tasks."""
        earlier = self.data.splits.train.parts[: self.task]
        return sum(map(len, earlier)) * math.prod(self.data.image_shape)  # uint8

    def begin_task(self) -> None:
        """Draws new weights, where that is wanted: by the seed and the task, the same on every device."""
        if not self.fresh or self.task == 0:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed * len(self.tasks) + self.task)
            self.encoder.load_state_dict(self.encoder.fresh().state_dict())
            self.head.load_state_dict(MultiHead(self.feature_dim, self.tasks.head_sizes).state_dict())

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of one view of every image, of whatever task."""
        logits = self.training_logits(self.view(batch, batch_idx))
        loss = self.cross_entropy(logits, batch.label, batch.task)
        self.log("train/loss", loss)
        return loss
