import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules import Batch
from losses import labelled_cross_entropy
from recipes.augment import SupervisedViews, Views
from recipes.base.classifier import Classifier
from recipes.nn import Encoder
from recipes.optim import WarmupCosine


class Supervised(Classifier):
    """Supervised learning: cross-entropy on labelled images, the baseline of the other recipes.

    Images without a label (-1) take no part in the loss.

    Args:
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1) (Szegedy et al., 2016,
            arXiv:1512.00567, Section 7).
        views: augmentation that draws one random view of every image. If null, uses random crops and flips
            (``SupervisedViews``).
        Other arguments: see ``Classifier``.

    Raises:
        ValueError: if ``num_classes`` or ``label_smoothing`` is out of range.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        label_smoothing: float = 0.0,
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        ),  # Goyal et al., 2017, Section 5.1: lr 0.1 per 256 images; weight decay: Zagoruyko & Komodakis, 2016
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o, warmup_epochs=5),  # Goyal et al., Section 2.2
        lr_batch_size: int | None = 256,
    ) -> None:
        super().__init__(encoder, num_classes, optimizer, scheduler, lr_batch_size)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}: it must be in [0, 1)")
        self.views = views or SupervisedViews()
        self.label_smoothing = label_smoothing

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of one random view of every image, the mean over the labelled images of all devices."""
        logits = self.logits(self(self.view(batch, batch_idx)))
        loss = labelled_cross_entropy(logits, batch.label, self.gather(batch.label), self.label_smoothing)
        self.log("train/loss", loss)
        return loss
