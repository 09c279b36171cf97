import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules import TaskBatch, Tasks
from recipes.augment import Views
from recipes.continual.replay import ReplayRecipe
from recipes.nn import Encoder, Policy, ReplayBuffer


class Rehearsal(ReplayRecipe):
    """Continual learning: experience replay, which adds stored images to every batch.

    As in "On Tiny Episodic Memories in Continual Learning" (Chaudhry et al., 2019, arXiv:1902.10486), each step is
    taken on the batch and on images of the memory together, and batch norm sees the mix. There every image comes once,
    and the memory changes with every batch; here the buffer takes in a task at its end.

    Args:
        encoder: maps images [B, C, H, W] to features [B, F].
        tasks: how many classes each task has, and the scenario. The ``recipes`` command takes them from the data.
        buffer_size: how many images of past tasks are kept, >= 1.
        policy: which: a uniform sample of all (``reservoir``), a uniform sample of as many of each class
            (``class-balanced``), or as many of each class that are near its mean (``herding``).
        replay_batch_size: how many images of past tasks go with a batch, over all devices together; fewer where the
            buffer has fewer. Null takes as many as the batch has.
        views: draws one random view of every image; null takes the images as they are.
        optimizer: makes the optimiser from parameter groups; norm layers and biases take no weight decay.
        scheduler: makes the learning-rate schedule of a task from the optimiser; null keeps the learning rate constant.
        lr_batch_size: the global batch size that the learning rate is stated for; null uses it as it stands.

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
        buffer = ReplayBuffer(buffer_size, policy)
        super().__init__(encoder, tasks, buffer, optimizer, replay_batch_size, views, scheduler, lr_batch_size)

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """Cross-entropy, the mean over images of the new task and of those before."""
        past = self.past(self.share(self.draw(batch, batch_idx)), batch)
        logits = self.training_logits(torch.cat([self.view(batch, batch_idx), self.replayed_view(past, batch_idx)]))
        loss = self.cross_entropy(logits, torch.cat([batch.label, past.label]), torch.cat([batch.task, past.task]))
        self.log("train/loss", loss, sync_dist=True)
        return loss
