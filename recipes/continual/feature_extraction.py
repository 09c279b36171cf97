import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable

from datamodules import Tasks
from recipes.augment import Views
from recipes.continual.fine_tuning import FineTuning
from recipes.nn import Encoder


class FeatureExtraction(FineTuning):
    """Continual learning: trains the encoder on the first task, and then only the head of each new task.

    What old tasks are classified by, θ_s and θ_o, never changes, so that in the scenario ``task`` nothing is forgotten
    (Li & Hoiem, 2016, arXiv:1606.09282, Figure 2(c)); the price is paid by the new tasks.

    Args:
        encoder: maps images [B, C, H, W] to features [B, F].
        tasks: how many classes each task has, and the scenario. The ``recipes`` command takes them from the data.
        later_lr_factor: what the learning rate is multiplied by in every task but the first, > 0 (Li & Hoiem,
            Section 3: 0.1 to 0.02).
        views: draws one random view of every image; null takes the images as they are.
        optimizer: makes the optimiser from parameter groups; norm layers and biases take no weight decay.
        scheduler: makes the learning-rate schedule of a task from the optimiser; null keeps the learning rate constant.
        lr_batch_size: the global batch size that the learning rate is stated for; null uses it as it stands.

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
