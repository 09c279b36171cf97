import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules import Batch
from losses import NTXent
from recipes.augment import SimCLRViews, Views
from recipes.base.recipe import Recipe
from recipes.errors import check_at_least
from recipes.nn import Encoder, in_micro_batches, projection_head, sees_the_batch
from recipes.optim import LARS, WarmupCosine


class SimCLR(Recipe):
    """Contrastive learning of two views against the batch (Chen et al., 2020, arXiv:2002.05709).

    Two random views of every image attract each other and repel the views of all other images in the global batch
    (Algorithm 1). The projection head serves the loss alone: features are taken before it (Section 4.2).

    Args:
        encoder: network f(·) that maps images [B, C, H, W] to features [B, F].
        projection_dim: width of the projections z, > 0. The loss compares the projections (Section 4.2).
        projection_hidden_dim: width of the projection head's hidden layer, > 0. If null, uses the number of features
            (Section 4.2).
        temperature: softmax temperature for the similarities, > 0.
        views: augmentation that draws a random view, twice for every image. If null, uses that of the paper (Section 3,
            Appendix A: ``SimCLRViews``).
        micro_batch_size: number of images that a device encodes at a time, > 0. A batch that does not fit into memory
            gets its exact gradient for the price of a second forward pass (see ``recipes.nn.in_micro_batches``). Not
            possible with batch norm in the encoder. If null, encodes the batch at once.
        Other arguments: see ``Recipe``.

    Raises:
        ValueError: if the temperature or a size is not positive; at the start of training, if ``micro_batch_size`` is
            given for an encoder with batch norm.
    """

    smallest_batch = 2  # the other images are the negatives

    def __init__(
        self,
        encoder: Encoder,
        projection_dim: int = 128,  # Section 4.2
        projection_hidden_dim: int | None = None,
        temperature: float = 0.1,  # Table 5: the best on ImageNet; Appendix B.9: 0.5 on CIFAR-10
        views: Views | None = None,
        micro_batch_size: int | None = None,
        optimizer: OptimizerCallable = lambda p: LARS(p, lr=0.3, weight_decay=1e-6),  # Section 2.2
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o, warmup_epochs=10),  # Section 2.2
        lr_batch_size: int | None = 256,  # Section 2.2: 0.3 × batch size / 256
    ) -> None:
        super().__init__(encoder, optimizer, scheduler, lr_batch_size)
        check_at_least(1, projection_dim=projection_dim, projection_hidden_dim=projection_hidden_dim)
        if micro_batch_size is not None and micro_batch_size < 1:
            raise ValueError(f"micro_batch_size is {micro_batch_size}: give a positive number of images, or null")
        self.micro_batch_size = micro_batch_size
        self.views: Views = views or SimCLRViews()
        hidden_dim = self.feature_dim if projection_hidden_dim is None else projection_hidden_dim
        self.projector = projection_head(  # g(·), Section 4.2; with batch norm at its end as in the published code
            self.feature_dim, hidden_dim, projection_dim, output_batch_norm=True
        )
        self.loss = NTXent(temperature)

    def on_train_start(self) -> None:
        """Warns where batch norm is not that of the global batch (Section 2.2)."""
        self.warn_of_local_batch_norm()

    def on_fit_start(self) -> None:
        """Refuses micro-batches where an image's features depend on the other images."""
        if self.micro_batch_size is not None and sees_the_batch(self.encoder):
            raise ValueError(
                f"micro_batch_size is {self.micro_batch_size}, but the encoder has batch norm, which has to see the "
                "whole batch: give the encoder norm='group', or leave micro_batch_size out"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Algorithm 1."""
        feature = in_micro_batches(self.features_of_views, batch, self.micro_batch_size)
        z1, z2 = self.projector(feature.flatten(0, 1)).chunk(2)
        loss = self.loss(z1, z2, (self.gather(z1), self.gather(z2)), offset=self.global_rank * len(z1))
        self.log("train/loss", loss)
        return loss

    def features_of_views(self, batch: Batch) -> Tensor:
        """The features [2, B, F] of two views of every image; encoded in one pass, so that batch norm sees both."""
        views = torch.cat([self.views(batch.image, self.key(batch, view)) for view in (0, 1)])
        return self(views).unflatten(0, (2, -1))
