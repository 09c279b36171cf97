from functools import partial
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from datamodules import Batch
from losses import BootstrapLoss, unit
from recipes.augment import BYOLViews, Views
from recipes.base.recipe import Recipe
from recipes.errors import check_at_least
from recipes.nn import (
    Encoder,
    MomentumCopy,
    check_momentum,
    cosine_momentum,
    feature_std,
    projection_head,
)
from recipes.optim import LARS, WarmupCosine


class BYOL(Recipe):
    """Self-supervised learning without negatives: predicts a momentum target (Grill et al., 2020, arXiv:2006.07733).

    The online network sees one view of an image and predicts the target network's projection of another view. The
    target network is a moving average of the online network. There are no negatives: collapse to a constant is avoided
    by the predictor, the target network and the stop-gradient (Section 3.2). The options below remove these one by one,
    as in the paper. ``train/projection_std`` shows whether the projections collapse: it is 1 if they spread evenly over
    the sphere, and 0 if all are equal. ``val/effective_rank`` and ``val/feature_std`` show this for the features.

    Args:
        encoder: network f(·) that maps images [B, C, H, W] to features [B, F].
        projection_dim: width of the projections and predictions, > 0.
        projection_hidden_dim: width of the hidden layer of projector and predictor, > 0.
        momentum: momentum τ of the target network at the first step, in [0, 1]. It rises to 1 by half a cosine.
        constant_momentum: whether τ is constant. With τ = 0 the target is the online network of the previous step, with
            τ = 1 the network at initialisation (Table 5a).
        predictor: whether the online network has a predictor. Without one, projections are predictions (Table 5b).
        target: whether the targets are projections of the momentum copy, without gradient. If false, they are
            projections of the online network, which get a gradient too (Table 5b).
        negatives_weight: weight β of the loss term that pushes predictions away from the targets of other images, >= 0
            (Equation 6, Table 5b).
        temperature: softmax temperature for the negatives, > 0. Unused if negatives_weight is 0.
        views: augmentation that draws a random view, twice for every image. If null, uses the paper's two distributions
            (``BYOLViews``).
        Other arguments: see ``Recipe``.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(
        self,
        encoder: Encoder,
        projection_dim: int = 256,  # Section 3.3
        projection_hidden_dim: int = 4096,  # Section 3.3
        momentum: float = 0.996,  # Section 3.3
        constant_momentum: bool = False,
        predictor: bool = True,
        target: bool = True,
        negatives_weight: float = 0.0,
        temperature: float = 0.1,  # Appendix F.4
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: LARS(p, lr=0.2, weight_decay=1.5e-6),  # Section 3.3
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o, warmup_epochs=10),  # Section 3.3
        lr_batch_size: int | None = 256,  # Section 3.3
    ) -> None:
        super().__init__(encoder, optimizer, scheduler, lr_batch_size)
        check_at_least(1, projection_dim=projection_dim, projection_hidden_dim=projection_hidden_dim)
        check_momentum(momentum)
        self.momentum = momentum
        self.constant_momentum = constant_momentum
        self.views: Views = views or BYOLViews()
        head = partial(projection_head, hidden_dim=projection_hidden_dim, out_dim=projection_dim, output_bias=False)
        self.projector = head(self.feature_dim)  # g(·)
        self.predictor = head(projection_dim) if predictor else nn.Identity()  # q(·)
        self.target = MomentumCopy(self.encoder, self.projector) if target else None  # ξ
        self.loss = BootstrapLoss(negatives_weight, temperature)

    def on_train_start(self) -> None:
        """Warns if batch norm does not use the global batch, as the published code does."""
        self.warn_of_local_batch_norm()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Algorithm 1."""
        views = [self.normalize(self.views(batch.image, self.key(batch, view))) for view in (0, 1)]
        projections = [self.projector(self.encoder(view)) for view in views]  # one by one: their distributions differ
        z1, z2 = projections if self.target is None else [self.target(view) for view in views]
        candidates = (self.gather(z1), self.gather(z2)) if self.loss.negatives_weight else None
        p1, p2 = (self.predictor(projection) for projection in projections)
        loss = self.loss((p1, p2), (z1, z2), candidates, offset=self.global_rank * len(z1))
        self.log("train/loss", loss)
        first = projections[0].detach()
        self.log("train/projection_std", lambda: feature_std(unit(self.gather(first))))
        return loss

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Takes the step, and has the target follow: ξ ← τ ξ + (1 - τ) θ (Equation 1)."""
        super().optimizer_step(*args, **options)
        if self.target is not None:
            self.target.update(self.target_momentum)

    @property
    def target_momentum(self) -> float:
        """τ of the current step: it rises to 1 by half a cosine (Section 3.3), unless it is constant."""
        if self.constant_momentum:
            return self.momentum
        return cosine_momentum(self.momentum, self.steps_done, self.total_steps)
