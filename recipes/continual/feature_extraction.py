import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from datamodules import Tasks
from recipes.augment import Views
from recipes.continual.fine_tuning import FineTuning
from recipes.nn import Encoder


class FeatureExtraction(FineTuning):
    """Continual learning: trains the encoder on the first task, and then only the head of each new task.

    The encoder θ_s and the old heads θ_o, which classify the old tasks, never change. In the scenario ``task`` nothing
    is therefore forgotten (Li & Hoiem, 2016, arXiv:1606.09282, Figure 2(c)), but new tasks are learned less well.

    Args:
        later_lr_factor: factor on the learning rate in all tasks after the first, > 0 (Li & Hoiem, 2016, Section 3: 0.1
            to 0.02).
        Other arguments: see ``ContinualRecipe``.

    Raises:
        ValueError: if ``later_lr_factor`` is not positive.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        later_lr_factor: float = 1.0,
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, tasks, "head", 0, later_lr_factor, views, optimizer, scheduler, lr_batch_size)
