import math
from typing import ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional as F

from datamodules import Scenario, TaskBatch, Tasks
from recipes.augment import Views
from recipes.continual.replay import ReplayRecipe
from recipes.errors import check_at_least
from recipes.nn import Encoder, ReplayBuffer, Replicated, Snapshot

_FARTHEST = 5.0  # farther than any mean can be: unit vectors have a squared distance of at most 4


class ICaRL(ReplayRecipe):
    """Continual learning: classifies by the nearest mean of exemplars (Rebuffi et al., 2017, arXiv:1611.07725).

    iCaRL stores exemplars of each class whose mean is near that of the class (herding, Algorithm 4), and divides the
    buffer equally among the classes so far (Algorithm 5). The network is trained with a sigmoid for each class, on the
    images of the new task and on exemplars. The targets are the labels for new classes, and the network's predictions
    before the task for old classes (Algorithm 3). An image is assigned to the class whose exemplars have the nearest
    mean feature (Algorithm 1). During a task, its classes have no exemplars, so accuracies are those of the network's
    outputs.

    The loss is the mean over images of the sum over the classes so far. The published code averages over classes too,
    including the classes of later tasks, which have no images.

    Args:
        buffer_size: number K of exemplars of all classes together, >= 1.
        replay_batch_size: number of exemplars in a step over all devices together, >= 1. If null, uses a number with
            which each exemplar appears about once in an epoch, as in Algorithm 3.
        Other arguments: see ``ContinualRecipe``.

    Attributes:
        nearest_mean: the means of the exemplars' features, as they were when the last task ended.

    Raises:
        ValueError: if an argument is out of its range, or the scenario is ``domain``.
    """

    scenarios: ClassVar[tuple[Scenario, ...]] = ("task", "class")
    has_probabilities = False
    adds_classes = (
        "no exemplars of the old classes: none is replayed, and the network's outputs classify instead of the nearest "
        "mean, as not all classes have one"
    )

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        buffer_size: int = 2000,  # published code: 20 for each of 100 classes
        replay_batch_size: int | None = None,
        views: Views | None = None,
        # Published code: 2, with the mean over 100 classes where here is the sum
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=1e-5),
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        check_at_least(1, buffer_size=buffer_size)
        buffer = ReplayBuffer(buffer_size, "herding")
        super().__init__(encoder, tasks, buffer, optimizer, replay_batch_size, views, scheduler, lr_batch_size)
        self.old_network = Snapshot(self.encoder, self.head)
        self.nearest_mean = NearestMean(self.feature_dim, self.tasks.num_classes)

    def begin_task(self) -> None:
        """Copies the network, whose outputs for old classes are to stay."""
        self.old_network.take()

    def end_task(self) -> None:
        """Chooses exemplars of the new classes, drops some of the old ones, and takes the means of all."""
        self.keep()
        rows = torch.arange(len(self.buffer), device=self.device)
        feature = self.of_rows(rows, lambda part: self(self.buffer.image[part]))
        self.nearest_mean.set(feature, self.buffer.label)

    def replays(self, batch: TaskBatch) -> int:
        """As many exemplars as let each come about once in an epoch."""
        if self.replay_batch_size is not None:
            return self.replay_batch_size
        images = len(self.data.splits.train.parts[self.task])
        return math.ceil(len(batch.index) * self.trainer.world_size * len(self.buffer) / images)

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """Computes the binary cross-entropy with labels for new classes, and with old predictions for old classes."""
        drawn = self.draw(batch, batch_idx)
        past = self.past(self.share(drawn), batch)
        image = torch.cat([self.view(batch, batch_idx), self.replayed_view(past, batch_idx)])
        old = self.old_network(self.normalize(image)) if self.task > 0 else None
        total = self.loss(self.training_logits(image), torch.cat([batch.label, past.label]), old)
        images = len(batch.index) * self.trainer.world_size + len(drawn)
        loss = total / images * self.trainer.world_size  # DDP takes the mean over the devices
        self.log("train/loss", loss)
        return loss

    def loss(self, logits: Tensor, label: Tensor, old: Tensor | None) -> Tensor:
        """Algorithm 3, classification and distillation: the sum over images [n] and over the classes so far.

        Args:
            logits: [n, classes].
            label: int64 [n].
            old: logits of the old network [n, classes]; None in the first task.
        """
        new = self.tasks.labels(self.task)  # s, ..., t
        target = F.one_hot(label, self.tasks.num_classes).to(logits)
        if old is not None:
            target[:, : new.start] = old[:, : new.start].to(logits).sigmoid()  # q
        so_far = slice(0, new.stop)
        return F.binary_cross_entropy_with_logits(logits[:, so_far], target[:, so_far], reduction="sum")

    def unmasked_logits(self, feature: Tensor) -> Tensor:
        """Maps features [B, F] to minus the squared distance from the mean of each class [B, classes].

        While a task is learned, before the first, and if the first task had no images, to the logits of the network.
        """
        has_means = 0 < self.begun == self.ended and not self.first_without_images
        return self.nearest_mean(feature) if has_means else super().unmasked_logits(feature)


class NearestMean(Replicated):
    """Compares features with the mean feature of each class, all scaled to length one (Algorithm 1).

    Args:
        dim: number F of features of an image.
        classes: number of classes.

    Attributes:
        mean: [classes, F], of length one; 0 for classes without images.
    """

    mean: Tensor

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(classes, dim))

    @torch.no_grad()
    def set(self, feature: Tensor, label: Tensor) -> None:
        """Takes the means of features [N, F] of classes [N]."""
        feature = F.normalize(feature.to(self.mean))
        total = torch.zeros_like(self.mean).index_add_(0, label, feature)
        self.mean = F.normalize(total)  # the mean is as long as the sum, once it is normalised

    def forward(self, feature: Tensor) -> Tensor:
        """Maps features [B, F] to minus the squared distance from each mean [B, classes], in [-4, 0]; else -5."""
        dtype = torch.promote_types(feature.dtype, torch.float32)
        with torch.autocast(feature.device.type, enabled=False):
            feature, mean = F.normalize(feature.to(dtype)), self.mean.to(dtype)
            lengths = feature.square().sum(1, keepdim=True) + mean.square().sum(1)
            squared = (lengths - 2 * F.linear(feature, mean)).clamp(min=0)  # torch.cdist has no ONNX form
        return -squared.masked_fill(~mean.any(1), _FARTHEST)
