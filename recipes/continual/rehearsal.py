import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules import TaskBatch, Tasks
from recipes.augment import Views
from recipes.continual.replay import ReplayRecipe
from recipes.errors import check_at_least
from recipes.nn import Encoder, Policy, ReplayBuffer


class Rehearsal(ReplayRecipe):
    """Continual learning: experience replay, which adds stored images to every batch.

    As in "On Tiny Episodic Memories in Continual Learning" (Chaudhry et al., 2019, arXiv:1902.10486), each step uses
    the batch and images from the buffer together, and batch norm uses the mixed batch. In the paper every image is used
    once, and the buffer changes with every batch. Here the buffer stores images of a task when the task ends.

    Args:
        buffer_size: number of images of past tasks that the buffer stores, >= 1.
        policy: rule that chooses the stored images: ``reservoir``, a uniform sample of all images; ``class-balanced``,
            a uniform sample of equally many images of each class; ``herding``, equally many images of each class near
            the mean of the class.
        Other arguments: see ``ReplayRecipe``.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        buffer_size: int = 500,  # of the 200, 500 and 5120 of Buzzega et al., 2020, arXiv:2004.07211
        policy: Policy = "reservoir",
        replay_batch_size: int | None = None,  # published code of Buzzega et al.: as many as the batch, 32
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),  # van de Ven & Tolias, 2019
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        check_at_least(1, buffer_size=buffer_size)
        buffer = ReplayBuffer(buffer_size, policy)
        super().__init__(encoder, tasks, buffer, optimizer, replay_batch_size, views, scheduler, lr_batch_size)

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """Cross-entropy, the mean over images of the new task and of those before."""
        past = self.past(self.share(self.draw(batch, batch_idx)), batch)
        logits = self.training_logits(torch.cat([self.view(batch, batch_idx), self.replayed_view(past, batch_idx)]))
        loss = self.cross_entropy(logits, torch.cat([batch.label, past.label]), torch.cat([batch.task, past.task]))
        self.log("train/loss", loss)
        return loss
