import math

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules import TaskBatch, Tasks
from recipes.augment import Key, Views
from recipes.continual.replay import ReplayRecipe
from recipes.errors import check_at_least
from recipes.nn import Encoder, Policy, ReplayBuffer

_DRAW, _RECORDED = 3, 4  # as in replay.py


class DERpp(ReplayRecipe):
    """Continual learning: replays stored images, labels and logits (Buzzega et al., 2020, arXiv:2004.07211).

    The network's logits are stored with every buffered image. Two terms, each on its own sample from the buffer, are
    added to the cross-entropy of the new task: ``logit_weight`` × the mean squared difference from the stored logits,
    and ``replay_weight`` × the cross-entropy of the stored labels.

    The published code stores logits during training and compares them with the logits of another view. Here the logits
    are computed at the end of a task, in eval mode, and compared on the same view, which is fixed for each image.
    Logits of classes whose task had not begun are not compared. All images of a step pass through the network together,
    so batch norm uses the mixed batch; the published code makes three passes.

    Args:
        logit_weight: weight α of the stored logits, >= 0. With 0, the logits have no influence.
        replay_weight: weight β of the stored labels, >= 0. With 0, the method is DER, which uses the logits only.
        buffer_size: number of images of past tasks that the buffer stores, >= 1.
        policy: rule that chooses the stored images: ``reservoir``, a uniform sample of all images; ``class-balanced``,
            a uniform sample of equally many images of each class; ``herding``, equally many images of each class near
            the mean of the class.
        replay_batch_size: number of images of past tasks for each of the two terms, over all devices together, >= 1;
            fewer if the buffer has fewer. If null, uses the batch size.
        Other arguments: see ``ContinualRecipe``.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        logit_weight: float = 0.2,  # published code, split CIFAR-10 with 500 images
        replay_weight: float = 0.5,  # published code, split CIFAR-10 with 500 images
        buffer_size: int = 500,  # of the paper's 200, 500 and 5120
        policy: Policy = "reservoir",  # the paper's
        replay_batch_size: int | None = None,  # published code: as many as the batch, 32
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.03),  # published code, split CIFAR-10
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        for name, weight in ("logit_weight", logit_weight), ("replay_weight", replay_weight):
            if not 0 <= weight < math.inf:
                raise ValueError(f"{name} is {weight}: it must be at least 0, which leaves the term out")
        check_at_least(1, buffer_size=buffer_size)
        buffer = ReplayBuffer(buffer_size, policy, tasks.num_classes if tasks else 0)
        super().__init__(encoder, tasks, buffer, optimizer, replay_batch_size, views, scheduler, lr_batch_size)
        self.logit_weight = logit_weight
        self.replay_weight = replay_weight

    def end_task(self) -> None:
        """Takes images of the task into the buffer, each with the logits of the view that belongs to it."""
        rows = self.keep()
        if len(rows):
            self.buffer.record(rows, self.of_rows(rows, self._logits_to_record))

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """Cross-entropy of the new task, and on past tasks the old logits and the labels."""
        drawn = self.draw(batch, batch_idx, _DRAW)
        rows = self.share(drawn)
        past = self.past(self.share(self.draw(batch, batch_idx)), batch)
        image = [
            self.view(batch, batch_idx),
            self.recorded_view(self.past(rows, batch)),
            self.replayed_view(past, batch_idx),
        ]
        new, of_recorded, of_past = self.training_logits(torch.cat(image)).split([len(part) for part in image])
        loss = self.cross_entropy(new, batch.label, batch.task)
        if len(self.buffer):
            logit_loss = self.logit_loss(of_recorded, rows, drawn)
            replay_loss = self.cross_entropy(of_past, past.label, past.task)
            self.log("train/logit_loss", logit_loss)
            self.log("train/replay_loss", replay_loss)
            loss = loss + self.logit_weight * logit_loss + self.replay_weight * replay_loss
        self.log("train/loss", loss)
        return loss

    def logit_loss(self, logits: Tensor, rows: Tensor, drawn: Tensor) -> Tensor:
        """The mean squared difference from the logits that were kept.

        The mean is over the images of all devices and over the classes whose task had begun when they were recorded.

        Args:
            logits: of this device's images, [n, classes].
            rows: int64 [n], where they are in the buffer.
            drawn: int64 [N], the rows of all devices.
        """
        known = self.own_labels.cumsum(0) > 0  # [tasks, classes]
        count = known[self.buffer.task[drawn]].sum()
        squared = (logits - self.buffer.logits[rows].to(logits)).square()
        total = (squared * known[self.buffer.task[rows]]).sum()
        return total / count * self.trainer.world_size  # DDP takes the mean over the devices

    def recorded_view(self, past: TaskBatch) -> Tensor:
        """The view of each image [n, C, H, W] that its logits are of: a function of the image alone."""
        return past.image if self.views is None else self.views(past.image, Key(self.seed, 0, past.index, _RECORDED))

    def _logits_to_record(self, rows: Tensor) -> Tensor:
        return self.training_logits(self.recorded_view(self.kept(rows)))
