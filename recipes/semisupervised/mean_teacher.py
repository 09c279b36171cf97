import math
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.nn import functional as F

from datamodules import Batch
from losses import labelled_cross_entropy
from losses.precision import at_least_float32
from recipes.augment import Compose, HorizontalFlip, RandomAffine, Views
from recipes.base.classifier import Classifier
from recipes.base.measures import accuracy
from recipes.nn import Encoder, MomentumCopy, check_momentum
from recipes.optim import WarmupCosine


class MeanTeacher(Classifier):
    """Semi-supervised learning: matches a moving-average teacher (Tarvainen & Valpola, 2017, arXiv:1703.01780).

    The student is trained on the labelled images, and on all images to match the teacher's prediction for another view.
    The teacher's weights are a moving average of the student's, and the teacher classifies better. Accuracies and
    predicted probabilities are therefore the teacher's; features are the student's. ``datamodules.SemiSupervised`` puts
    labelled and unlabelled (-1) images into every batch.

    The loss is the cross-entropy, averaged over the labelled images, plus w × consistency, averaged over all images.
    After step n = 1, 2, ... the teacher keeps the share τ = min(1 - 1 / (n + 1), momentum) of its weights. It is
    therefore the plain average of all students at first. The ramp-up lasts T = rampup × (steps of the run) steps: at
    step t = n - 1 < T, w is ``consistency_weight`` × exp(-5 (1 - t / T)²) and the momentum is ``rampup_momentum``.

    The learning rate is not the published one. The published code multiplies it by exp(-5 (1 - t / T)²) in the ramp-up,
    and in the last 25,000 of 150,000 steps by exp(-12.5 u²), where u rises from 0 to 1 in these steps. Adam's β₁ falls
    from 0.9 to 0.5 at the same time. Here the default is a linear warm-up and half a cosine, with β₁ = 0.9. The
    published experiments on CIFAR-10 have a momentum of 0.999 from the first step on; the plain average at first is
    that of the published PyTorch code.

    Args:
        consistency: measure of the difference between the student's and the teacher's probabilities: ``mse``, the mean
            squared difference over the classes, or ``kl``, the Kullback-Leibler divergence.
        consistency_weight: w after the ramp-up, >= 0. With 0, only labelled images count.
        rampup: share of the run in which w rises, in [0, 1].
        rampup_momentum: largest τ during the ramp-up, in [0, 1].
        momentum: largest τ after the ramp-up, in [0, 1].
        views: augmentation that draws a random view of every image, once for the student and once for the teacher. If
            null, uses shifts of up to an eighth of the image and flips, as the paper does for CIFAR-10.
        Other arguments: see ``Classifier``.

    Raises:
        ValueError: if an argument is out of its range; at the start of training, if there are fewer labelled images
            than classes.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        consistency: Literal["mse", "kl"] = "mse",
        # The published code, for SVHN and CIFAR-10: 100 × the labelled share of the batch, and cross-entropy as a mean
        # over all images, which is as many times smaller.
        consistency_weight: float = 100.0,
        rampup: float = 40 / 150,  # published code, CIFAR-10: 40,000 of 150,000 steps
        rampup_momentum: float = 0.99,  # published code, ema_decay_during_rampup; 0.999 for CIFAR-10
        momentum: float = 0.999,  # published code, ema_decay_after_rampup
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=3e-3),  # published code, max_learning_rate
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o, warmup_epochs=5),
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, num_classes, optimizer, scheduler, lr_batch_size)
        if consistency not in ("mse", "kl"):
            raise ValueError(f"consistency is {consistency!r}: it must be 'mse' or 'kl'")
        if not 0 <= consistency_weight < math.inf:
            raise ValueError(f"consistency_weight is {consistency_weight}: it must be at least 0 (labels alone)")
        if not 0 <= rampup <= 1:
            raise ValueError(f"rampup is {rampup}: it must be a share of the run, between 0 and 1")
        check_momentum(rampup_momentum, "rampup_momentum")
        check_momentum(momentum)
        self.consistency = consistency
        self.consistency_weight = consistency_weight
        self.rampup = rampup
        self.rampup_momentum = rampup_momentum
        self.momentum = momentum
        self.views = views or Compose([RandomAffine(translate=4 / 32, padding="border"), HorizontalFlip(0.5)])
        self.teacher = MomentumCopy(self.encoder, self.head)
        self.val_student_accuracy, self.test_student_accuracy = (
            accuracy(f"{split}/student_accuracy") for split in ("val", "test")
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross-entropy of the labelled images, and consistency of student and teacher on all."""
        ours, theirs = (self.view(batch, batch_idx, view) for view in (0, 1))
        student, teacher = self.logits(self(ours)), self.classify(theirs)  # [B, classes]
        supervised_loss = labelled_cross_entropy(student, batch.label, self.gather(batch.label))
        if self.consistency == "mse":
            consistency = F.mse_loss(student.softmax(1), teacher.softmax(1))  # the mean over images and classes
        else:
            targets = teacher.log_softmax(1)
            consistency = F.kl_div(student.log_softmax(1), targets, reduction="batchmean", log_target=True)
        weight = self.consistency_weight * self.risen()
        loss = supervised_loss + weight * consistency
        self.log("train/loss", loss)
        self.log("train/supervised_loss", supervised_loss)
        self.log("train/consistency", consistency)
        self.log("train/consistency_weight", weight)
        return loss

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Moves the student, then the teacher."""
        super().optimizer_step(*args, **options)
        largest = self.rampup_momentum if self.risen() < 1 else self.momentum
        self.teacher.update(min(1 - 1 / (self.global_step + 2), largest))  # this step does not count yet

    def risen(self) -> float:
        """How far the ramp-up is at this step, in (0, 1]: exp(-5 (1 - t / T)²)."""
        length = self.rampup * self.total_steps
        return math.exp(-5 * (1 - self.steps_done / length) ** 2) if self.steps_done < length else 1.0

    def classify(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W], uint8 or float in [0, 1], to the teacher's logits [B, classes]."""
        self.check_range(image)
        return at_least_float32(self.teacher(self.normalize(image)))

    def batch_logits(self, batch: Batch, feature: Tensor) -> Tensor:
        """Returns the teacher's logits [B, classes] of the images; ``logits`` of the features are the student's."""
        return self.classify(batch.image)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs ``val/loss``, ``val/accuracy`` and ``val/student_accuracy``; returns the student's features [B, F]."""
        feature = super().validation_step(batch, batch_idx)
        self.measure(self.val_student_accuracy, self.logits(feature), batch.label)
        return feature

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs ``test/accuracy`` and ``test/student_accuracy``; returns the student's features [B, F]."""
        feature = super().test_step(batch, batch_idx)
        self.measure(self.test_student_accuracy, self.logits(feature), batch.label)
        return feature
