from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules import TaskBatch, Tasks
from recipes.augment import Views
from recipes.continual.base import ContinualRecipe
from recipes.continual.task_start import TaskStart
from recipes.nn import Encoder


class FineTuning(ContinualRecipe):
    """Continual learning: sequential fine-tuning, the lower bound.

    Trains on each new task in turn without any measure against forgetting. In the scenario ``task``, the heads of old
    tasks do not change (Li & Hoiem, 2016, arXiv:1606.09282, Figure 2(b)). In ``class``, all classes share one softmax,
    so the old heads continue to learn.

    Args:
        from_stage: first stage of the encoder that learns from the second task on, >= 0; the stages before it are
            frozen. With 0 all stages learn; with ``head`` (or the number of stages) none does, which is
            ``FeatureExtraction``. All stages learn in the first task.
        warmup_epochs: number of first epochs of each later task in which only the new head learns, >= 0 (Li & Hoiem,
            2016, Section 3: until convergence). A task that is not longer has a warm-up of a tenth of its epochs.
        later_lr_factor: factor on the learning rate in all tasks after the first, > 0 (Li & Hoiem, 2016, Section 3: 0.1
            to 0.02).
        Other arguments: see ``ContinualRecipe``.

    Raises:
        ValueError: if ``from_stage``, ``warmup_epochs`` or ``later_lr_factor`` is out of its range.
    """

    adds_classes = ""

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        from_stage: int | Literal["head"] = 0,
        warmup_epochs: int = 0,
        later_lr_factor: float = 1.0,
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),  # van de Ven & Tolias, 2019
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, tasks, optimizer, views, scheduler, lr_batch_size)
        self.task_start = TaskStart(warmup_epochs, later_lr_factor)
        names = [stage.name for stage in self.frozen.stages]
        self.from_stage = len(names) if from_stage == "head" else from_stage
        if not 0 <= self.from_stage <= len(names):
            raise ValueError(
                f"from_stage is {from_stage}, and the encoder has {len(names)} stages ({', '.join(names)}): give a "
                f"number from 0 to {len(names)}, or head"
            )

    @property
    def frozen_stages(self) -> int:
        """How many stages of the encoder, from the first, do not learn now."""
        return max(super().frozen_stages, self.from_stage if self.task > 0 else 0)

    @property
    def learning_heads(self) -> Sequence[int]:
        """Where the encoder is frozen, so are the heads of old tasks."""
        only_new = self.from_stage == len(self.frozen) and self.tasks.scenario != "domain"
        return [self.task] if only_new else super().learning_heads

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of one view of every image."""
        logits = self.training_logits(self.view(batch, batch_idx))
        loss = self.cross_entropy(logits, batch.label, batch.task)
        self.log("train/loss", loss)
        return loss
