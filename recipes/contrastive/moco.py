from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules import Batch
from losses import InfoNCE
from recipes.augment import MoCoV2Views, Views, uniform
from recipes.base.recipe import Recipe
from recipes.errors import check_at_least
from recipes.nn import (
    Encoder,
    FeatureQueue,
    MomentumCopy,
    Shuffle,
    average_running_statistics,
    check_momentum,
    projection_head,
    split_batch_norm,
)
from recipes.optim import WarmupCosine


class MoCo(Recipe):
    """Contrastive learning against a queue of momentum features (He et al., 2020, arXiv:1911.05722; v2: 2003.04297).

    A query, one view of an image, has to find the key of another view of the image among a queue of keys of earlier
    images. Keys come from a slowly moving average of the query's network, and therefore stay comparable in the queue
    while the batch stays small (version 1, Algorithm 1). The defaults are version 2's. Version 1 has one linear layer
    for a head (``projection_layers`` 1), a temperature of 0.07, and weaker views, ``InstanceDiscriminationViews``.

    Batch norm would let a query recognise the batch that its key was in. So batches are cut into
    ``batch_norm_splits``, each normalised by itself, and those of the keys are cut after a random shuffle (Section
    3.3). The paper has one part on each of 8 GPUs; here the parts are the same on any number of devices.

    Args:
        encoder: network that maps images [B, C, H, W] to features [B, F]; it is the query network's encoder.
        projection_dim: width of queries and keys, > 0.
        projection_hidden_dim: width of the projection head's hidden layer, > 0. If null, uses the number of features.
        projection_layers: number of layers of the projection head, >= 1.
        queue_size: number of keys in the queue, >= 1. It need not be a multiple of the batch size.
        momentum: momentum m of the key network, in [0, 1].
        temperature: softmax temperature for the similarities, > 0.
        batch_norm_splits: number of equal parts of the global batch that batch norm sees one at a time, >= 1: a
            multiple of the number of devices and a divisor of the batch size.
        views: augmentation that draws a random view, twice for every image. If null, uses that of version 2
            (``MoCoV2Views``).
        Other arguments: see ``Recipe``.

    Raises:
        ValueError: if a number is out of its range; at the start of training, if ``batch_norm_splits`` does not fit the
            devices or the batch.
    """

    def __init__(
        self,
        encoder: Encoder,
        projection_dim: int = 128,  # v1, Section 3.3
        projection_hidden_dim: int | None = 2048,  # v2, Section 3
        projection_layers: int = 2,  # v2, Section 3
        queue_size: int = 65536,  # v1, published code
        momentum: float = 0.999,  # v1, Section 3.2
        temperature: float = 0.2,  # v2, Section 3
        batch_norm_splits: int = 8,  # v1, Section 3.3: GPUs
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.03, momentum=0.9, weight_decay=1e-4
        ),  # v1, Section 4
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o, warmup_epochs=0),  # v2, Section 3
        lr_batch_size: int | None = 256,
    ) -> None:
        super().__init__(encoder, optimizer, scheduler, lr_batch_size)
        check_momentum(momentum)
        check_at_least(1, projection_dim=projection_dim, projection_hidden_dim=projection_hidden_dim)
        check_at_least(
            1, projection_layers=projection_layers, queue_size=queue_size, batch_norm_splits=batch_norm_splits
        )
        self.momentum = momentum
        self.batch_norm_splits = batch_norm_splits
        self.views: Views = views or MoCoV2Views()
        hidden_dim = self.feature_dim if projection_hidden_dim is None else projection_hidden_dim
        self.projector = projection_head(
            self.feature_dim, hidden_dim, projection_dim, projection_layers, batch_norm=False
        )
        self.key_network = MomentumCopy(self.encoder, self.projector)
        self.queue = FeatureQueue(queue_size, projection_dim)
        self.new_keys = torch.empty(0, projection_dim)
        self.loss = InfoNCE(temperature)

    def setup(self, stage: str) -> None:
        """Splits batch norm over this device's share of the parts."""
        super().setup(stage)
        if stage != "fit":
            return
        devices, splits = self.trainer.world_size, self.batch_norm_splits
        if splits % devices:
            raise ValueError(
                f"batch_norm_splits is {splits} and does not divide over {devices} devices: use a multiple of {devices}"
            )
        batch_size = getattr(self.datamodule, "batch_size", 2 * splits)
        if batch_size % splits or batch_size == splits:
            raise ValueError(
                f"batch_norm_splits is {splits}, but {batch_size} images do not divide into so many equal parts of at "
                "least 2 images: change batch_norm_splits or the batch_size of the data"
            )
        split_batch_norm(self, splits // devices)
        images, keys = getattr(getattr(self.datamodule, "splits", None), "train", ()), len(self.queue.features)
        if 0 < len(images) <= keys:
            rank_zero_warn(
                f"queue_size is {keys:,}, and there are {len(images):,} training images: a query often finds a key of "
                "its own image among its negatives. Set queue_size well below the number of images"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Algorithm 1 of version 1."""
        index = self.gather(batch.index)
        order = uniform(self.key(batch._replace(index=index), 2), 1).flatten().argsort(stable=True)  # on every device
        shuffle = Shuffle(order, self.trainer.world_size, self.global_rank)
        query = self.projector(self(self.views(batch.image, self.key(batch, 0))))  # [B, D]
        self.new_keys = self.keys_of_all(batch, shuffle)  # [devices × B, D]
        own = self.new_keys.chunk(self.trainer.world_size)[self.global_rank]
        loss = self.loss(query, own, self.queue.features)
        self.log("train/loss", loss)
        return loss

    def on_after_backward(self) -> None:
        """Puts the new keys into the queue, now that it has served the loss: none was a negative of its own query."""
        self.queue.push(self.new_keys)
        average_running_statistics(self, self.gather)

    @torch.no_grad()
    def keys_of_all(self, batch: Batch, shuffle: Shuffle) -> Tensor:
        """The keys of all devices' images, in their order; made of them in a random order (Section 3.3)."""
        view = self.views(shuffle(batch.image), self.key(batch._replace(index=shuffle(batch.index)), 1))
        keys = self.key_network(self.normalize(view))
        return torch.empty_like(shuffled := self.gather(keys)).index_copy_(0, shuffle.order, shuffled)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Takes the step, and has the key network follow (Equation 2)."""
        super().optimizer_step(*args, **options)
        self.key_network.update(self.momentum)
