from typing import Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import Batch
from losses import SoftTarget
from losses.labelled import mixed_cross_entropy
from losses.precision import at_least_float32
from recipes.augment import DeiTViews, Mix, Views, partners
from recipes.distillation.student import Student
from recipes.distillation.teacher import Teacher
from recipes.nn import Encoder
from recipes.optim import WarmupCosine


class DeiT(Student):
    """Distillation: trains a vision transformer with a distillation token (Touvron et al., 2021, arXiv:2012.12877).

    A class token is trained on the labels. A distillation token is trained on the predictions of a teacher (preferably
    a convolutional network) for the same augmented and mixed images. Each token has a linear layer, and the loss is

        (1 - distillation_weight) · CE(class logits, labels) + distillation_weight · L(distillation logits, teacher),

    where L is the cross-entropy with the teacher's most probable class (``hard``, Equation 3), or T² times the
    cross-entropy with the teacher's probabilities at the temperature T (``soft``, Equation 2). The class is predicted
    from the mean of both logits. Images without a label (-1) are trained on the teacher only. Views are not repeated in
    a batch ("repeated augmentation", Table 9).

    Without a teacher, DeiT is the training of Table 9 for any encoder, for example a ``ViT`` with the class token.

    Args:
        encoder: network that maps images [B, C, H, W] to features [B, F]. With a teacher it must be a ``ViT`` with
            ``pool: tokens``, such as ``DistilledViT``, whose features [B, 2 D] are the class token and the distillation
            token.
        teacher: source of the teacher: a run directory, a folder of runs (the newest is used), a checkpoint, or
            ``torchvision:regnet_y_16gf`` with its default weights or those named after another colon. The logits of
            several teachers are averaged. If null, trains on labels only.
        distillation: kind of L: ``hard`` or ``soft``.
        distillation_weight: share of the teacher's part of the loss, in [0, 1]. If null, uses 0.5 for ``hard`` and 0.1
            for ``soft``.
        temperature: softmax temperature T of ``soft``, > 0.
        label_smoothing: share of the labels' target that is spread evenly over all classes, in [0, 1).
        mixup: α of mixup, >= 0 (see ``recipes.augment.Mix``). With 0, images are not mixed.
        cutmix: α of CutMix, >= 0. With 0, no box is pasted.
        views: augmentation that draws one random view of every image. If null, uses ``DeiTViews``.
        optimizer: optimiser of the trainable parameters. Norm layers, biases and embeddings get no weight decay.
        Other arguments: see ``Student``.

    Raises:
        ValueError: if an argument is out of its range, or the encoder's tokens do not suit; at the start of training,
            if the teacher has other classes or none, or cannot take the images.
        FileNotFoundError: at the start of training, if there is no such teacher.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        teacher: Teacher | str | list[str] | None = None,
        distillation: Literal["hard", "soft"] = "hard",
        distillation_weight: float | None = None,  # Equation 3 for hard; training details (lambda) for soft
        temperature: float = 3.0,  # training details (tau)
        label_smoothing: float = 0.1,  # Table 9, as are the next
        mixup: float = 0.8,
        cutmix: float = 1.0,
        keep_teacher: bool = False,
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.AdamW(p, lr=5e-4, weight_decay=0.05),
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o, warmup_epochs=5),
        lr_batch_size: int | None = 512,
    ) -> None:
        if distillation not in ("hard", "soft"):
            raise ValueError(f"distillation is {distillation!r}: it must be 'hard' or 'soft'")
        if distillation_weight is None:
            distillation_weight = 0.5 if distillation == "hard" else 0.1
        if not 0 <= distillation_weight <= 1:
            raise ValueError(f"distillation_weight is {distillation_weight}: it must be between 0 and 1 (no labels)")
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}: it must be in [0, 1)")
        pool = getattr(encoder, "pool", None)
        if teacher is not None and pool != "tokens":
            raise ValueError(
                f"{type(encoder).__name__} has no distillation token for a teacher: choose a ViT with pool "
                "'tokens', or the recipe TeacherStudent for other encoders"
            )
        if teacher is None and pool == "tokens":
            raise ValueError(
                "there is no teacher for the distillation token: give one, or set the encoder's pool to 'token'"
            )
        super().__init__(encoder, num_classes, teacher, keep_teacher, optimizer, scheduler, lr_batch_size)
        self.distillation_head: nn.Linear | None = None
        if teacher is not None:
            self.head, self.distillation_head = (nn.Linear(self.feature_dim // 2, num_classes) for _ in range(2))
        self.mix = Mix(mixup, cutmix) if mixup or cutmix else None
        self.views = views or DeiTViews()
        self.hard = distillation == "hard"
        self.distillation_weight = distillation_weight
        self.soft_target = SoftTarget(temperature)
        self.label_smoothing = label_smoothing

    def on_teacher_loaded(self) -> None:
        """Checks that the teacher is a classifier, too."""
        super().on_teacher_loaded()
        if self.teacher.num_classes is None:
            raise ValueError(
                f"the teacher {', '.join(self.teacher.sources)} has no classification head: choose a run of a "
                "classifier"
            )

    def token_logits(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Maps features [B, 2 D] to the logits [B, classes] of the class token and of the distillation token."""
        class_token, distillation_token = feature.chunk(2, 1)
        of_class = self.head(class_token)
        of_distillation = self.distillation_head(distillation_token)  # type: ignore[misc]  # None without a teacher
        return at_least_float32(of_class), at_least_float32(of_distillation)

    def logits(self, feature: Tensor) -> Tensor:
        """Maps features to logits [B, classes]: with a distillation token, the mean of both."""
        if self.distillation_head is None:
            return super().logits(feature)
        of_class, of_distillation = self.token_logits(feature)
        return (of_class + of_distillation) / 2

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The losses of one mixed view of every image, the means over the images of all devices."""
        image, share = self.mixed_view(batch, batch_idx)
        feature = self(image)
        if self.distillation_head is None:
            loss = self._of_labels(self.logits(feature), batch.label, share)
        else:
            of_class, of_distillation = self.token_logits(feature)
            hard = self._of_labels(of_class, batch.label, share)
            taught = self._of_teacher(of_distillation, self.teacher_logits(image))
            loss = (1 - self.distillation_weight) * hard + self.distillation_weight * taught
            self.log("train/label_loss", hard)
            self.log("train/distillation_loss", taught)
        self.log("train/loss", loss)
        return loss

    def mixed_view(self, batch: Batch, batch_idx: int) -> tuple[Tensor, Tensor | None]:
        """The mixed view of a batch, float images in [0, 1]; and how much of each is itself [B], if they are mixed."""
        image = self.view(batch, batch_idx)
        return (image, None) if self.mix is None else self.mix(image, self.key(batch, view=1).fold_in(batch_idx))

    def _of_labels(self, logits: Tensor, label: Tensor, share: Tensor | None) -> Tensor:
        return mixed_cross_entropy(logits, label, partners(label), share, self.gather(label), self.label_smoothing)

    def _of_teacher(self, logits: Tensor, teacher: Tensor) -> Tensor:
        return F.cross_entropy(logits, teacher.argmax(1)) if self.hard else self.soft_target(logits, teacher)
