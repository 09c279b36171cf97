import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from datamodules import Batch
from losses import labelled_cross_entropy
from recipes.augment import Views
from recipes.nn import Encoder
from recipes.optim import WarmupCosine
from recipes.transfer.frozen import FrozenClassifier, cache_features


class LinearProbe(FrozenClassifier):
    """Transfer learning: trains a linear classifier by SGD on the features of a frozen encoder.

    The encoder is in eval mode, has no gradient and is not in the optimiser. Without ``views`` the features of an image
    never change: they are computed once, so training costs as little as that of a linear layer. Published protocols,
    all for ImageNet, with random crops and flips (``views: SupervisedViews``) and without weight decay:

    - SimCLR (Chen et al., 2020, arXiv:2002.05709, Appendix B.6): Nesterov momentum, lr 0.1 × batch size / 256, batch
      4096, 90 epochs. The defaults.
    - BYOL (Grill et al., 2020, arXiv:2006.07733, appendix): Nesterov momentum, batch 1024, 80 epochs, the best lr of
      0.4, 0.3, 0.2, 0.1 and 0.05 on validation images.
    - MoCo (He et al., 2020, arXiv:1911.05722, published code, main_lincls.py): momentum, lr 30 for batch 256, times
      0.1 after epochs 60 and 80 of 100.
    - MAE (He et al., 2022, arXiv:2111.06377, published code, main_linprobe.py): ``batch_norm``, LARS with lr 0.1 ×
      batch size / 256, 90 epochs, 10 of them warm-up, then a cosine.

    Args:
        views: augmentation that draws one random view of every image. If null, uses the images as they are and encodes
            each only once.
        batch_norm: whether to batch-normalise the features, without scale and shift, before the linear layer, as in
            MAE. The learning rate then does not depend on their scale.
        Other arguments: see ``FrozenClassifier``.

    Raises:
        ValueError: if ``num_classes`` is out of range or the encoder has no such stage.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        stage: int | None = None,
        views: Views | None = None,
        batch_norm: bool = False,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, nesterov=True
        ),  # SimCLR, Appendix B.6 (lr) and B.5 (Nesterov momentum 0.9, no regularisation)
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o, warmup_epochs=0),  # as MAE, without warm-up
        lr_batch_size: int | None = 256,
    ) -> None:
        super().__init__(encoder, num_classes, stage, optimizer, scheduler, lr_batch_size)
        width = self.head.in_features
        nn.init.normal_(self.head.weight, std=0.01)  # published code of MoCo, as is the next; MAE: truncated
        nn.init.zeros_(self.head.bias)
        # published code of MAE: no affine, eps 1e-6
        self.batch_norm = nn.BatchNorm1d(width, eps=1e-6, affine=False) if batch_norm else nn.Identity()
        self.views = views

    def logits(self, feature: Tensor) -> Tensor:
        """Maps features [B, F] to logits [B, classes]."""
        return super().logits(self.batch_norm(feature))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of the linear classifier, the mean over the labelled images of all devices."""
        feature = self.feature(batch) if self.views is None else self(self.view(batch, batch_idx))
        loss = labelled_cross_entropy(self.logits(feature), batch.label, self.gather(batch.label))
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Passes the images through the encoder, if once is enough, and builds the optimiser on the head."""
        if self.views is None:
            cache_features(self)
        return super().configure_optimizers()
