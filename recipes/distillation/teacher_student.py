from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from datamodules import Batch, ImageDataModule, TaskBatch
from datamodules.paths import OutputPath
from losses import SoftTarget, labelled_cross_entropy
from losses.temperature import check_temperature
from recipes.augment import SupervisedViews, Views
from recipes.augment.base import to_float
from recipes.distillation.cached_logits import CachedLogits, TaughtBatch
from recipes.distillation.layer_losses import LayerLoss, LayerLosses
from recipes.distillation.layers import LOGITS, outputs
from recipes.distillation.student import Student
from recipes.distillation.teacher import Teacher
from recipes.nn import Encoder
from recipes.nn.frozen_stages import drop_gradients, parameters_without, zero_of
from recipes.optim import WarmupCosine


class TeacherStudent(Student):
    """Distillation: trains a student to match a teacher's predictions (Hinton et al., 2015, arXiv:1503.02531).

    The loss is

        T² · soft_weight · L_soft + (1 - soft_weight) · L_hard + Σ weight · (loss between two layers),

    where L_soft is the cross-entropy between teacher and student at the temperature T, and L_hard the cross-entropy
    between labels and student at temperature 1. Both are sums over classes and means over images.

    Teacher and student get the same view of an image. Images without a label (-1) are skipped in L_hard only; images
    without labels alone are enough, as long as the teacher has a share, and the classes are then the teacher's. For
    self-distillation (born-again networks: Furlanello et al., 2018, arXiv:1805.04770) the teacher is a run with the
    same encoder. For FitNets (Romero et al., 2015, arXiv:1412.6550) give the loss ``losses.Hint`` and ``hint_epochs``.

    Args:
        encoder: network of the student, which maps images [B, C, H, W] to features [B, F].
        teacher: source of the teacher: a run directory, a folder of runs (the newest is used), a checkpoint, or
            ``torchvision:resnet34`` with its default weights or those named after another colon. The logits of several
            teachers are averaged.
        temperature: softmax temperature T, > 0.
        final_temperature: temperature at the end of the run, > 0; it is reached in equal steps. If null, T is constant.
        soft_weight: share of L_soft, in [0, 1]. With 0, trains on labels only; with 1, on the teacher's logits only.
        scale_t2: whether to multiply L_soft by T², so that the shares mean the same at any temperature (Section 2).
        layer_losses: losses between layers of teacher and student, each with a weight of its own.
        hint_epochs: number of first epochs in which only the losses between layers are trained, >= 0; they are unused
            afterwards (FitNets, Section 2.2: two stages). With 0, all losses are trained together.
        teacher_logits: source of the teacher's logits: ``online`` computes them at every step, ``cached`` computes them
            once for every image and stores them in a file. Cached logits give every image a single view, the same in
            all epochs.
        logits_folder: folder for the cached logits. Runs with the same teacher, images and views share a file.
        views: augmentation that draws one random view of every image. If null, uses random crops and flips
            (``SupervisedViews``), or with cached logits the images as they are.
        Other arguments: see ``Student``.

    Raises:
        ValueError: if an argument is out of its range; at the start of training, if the teacher has other classes or
            cannot take the images, or a layer does not exist or does not suit its loss.
        FileNotFoundError: at the start of training, if there is no such teacher.
    """

    only_with_teacher = ("layer_losses.",)

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        teacher: Teacher | str | list[str],
        temperature: float = 4.0,  # published code of Tian et al., 2020, arXiv:1910.10699, as is the next: 0.1 and 0.9
        final_temperature: float | None = None,
        soft_weight: float = 0.9,
        scale_t2: bool = True,
        layer_losses: Sequence[LayerLoss] = (),
        hint_epochs: int = 0,
        teacher_logits: Literal["online", "cached"] = "online",
        logits_folder: OutputPath = "runs/teacher-logits",
        keep_teacher: bool = False,
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
        ),  # as for Supervised
        scheduler: LRSchedulerCallable | None = lambda o: WarmupCosine(o, warmup_epochs=5),
        lr_batch_size: int | None = 256,
    ) -> None:
        super().__init__(encoder, num_classes, teacher, keep_teacher, optimizer, scheduler, lr_batch_size)
        if not 0 <= soft_weight <= 1:
            raise ValueError(f"soft_weight is {soft_weight}: it must be between 0 (labels alone) and 1 (no labels)")
        if teacher_logits not in ("online", "cached"):
            raise ValueError(f"teacher_logits is {teacher_logits!r}: it must be 'online' or 'cached'")
        self.layer_losses = LayerLosses(layer_losses or (), encoder)
        if hint_epochs < 0 or (hint_epochs and not layer_losses):
            raise ValueError(
                f"hint_epochs is {hint_epochs}: it must be at least 0, and needs layer_losses such as losses.Hint"
            )
        if teacher_logits == "cached" and {*self.layer_losses.teacher_layers} - {LOGITS}:
            raise ValueError(
                "teacher_logits is cached: only logits are stored, but layer_losses also need the teacher's layers. "
                "Set teacher_logits to online"
            )
        self.soft_target = SoftTarget(temperature, scale_t2)
        if final_temperature is not None:
            check_temperature(final_temperature, usual="1 to 20", name="final_temperature")
        self.temperatures = temperature, temperature if final_temperature is None else final_temperature
        self.soft_weight = soft_weight
        self.hint_epochs = hint_epochs
        self.caches = teacher_logits == "cached"
        self.logits_folder = Path(logits_folder).expanduser()
        self.cached: CachedLogits | None = None
        self.views = views or (None if self.caches else SupervisedViews())
        self._idle: dict[bool, list[nn.Parameter]] = {}  # by whether hints are trained

    @property
    def learns_without_labels(self) -> bool:
        """The teacher's logits and layers are there for images without labels, too."""
        return self.soft_weight > 0 or len(self.layer_losses) > 0

    # The algorithm

    def training_step(self, batch: Batch | TaughtBatch, batch_idx: int) -> Tensor:
        """The losses of one view of every image, the means over the images of all devices."""
        seen = Batch(self.view(Batch(*batch[:3]), batch_idx), batch.label, batch.index)
        hints = self.current_epoch < self.hint_epochs
        by_layers = bool(len(self.layer_losses)) and (hints or not self.hint_epochs)
        theirs: dict[str, Tensor] = {}
        if by_layers or (self.soft_weight and not hints):
            theirs = self._of_teacher(seen, batch, self.layer_losses.teacher_layers if by_layers else ())
        ours = outputs(self, seen, self.layer_losses.student_layers if by_layers else ())
        loss = ours[LOGITS].new_zeros(())
        if not hints:
            loss = loss + self._by_logits(ours[LOGITS], theirs.get(LOGITS), batch.label)
        if by_layers:
            key = self.key(batch, view=1)  # type: ignore[arg-type]
            total, values = self.layer_losses(ours, theirs, batch, self.gather, key)
            loss = loss + total
            for name, value in values.items():
                self.log(f"train/{name}", value)
        self.log("train/loss", loss)
        return loss + self._zero_of_idle(loss, hints)

    def _by_logits(self, student: Tensor, teacher: Tensor | None, label: Tensor) -> Tensor:
        hard = labelled_cross_entropy(student, label, self.gather(label))
        self.log("train/hard_loss", hard)
        if not self.soft_weight:
            return hard
        self.soft_target.temperature = temperature = self.temperature_now()
        soft = self.soft_target(student, teacher)
        self.log("train/soft_loss", soft)
        if self.temperatures[0] != self.temperatures[1]:
            self.log("train/temperature", temperature)
        return self.soft_weight * soft + (1 - self.soft_weight) * hard

    def temperature_now(self) -> float:
        """T at this step of the run."""
        first, last = self.temperatures
        return first if first == last else first + (last - first) * self.steps_done / self.total_steps

    def view(self, batch: Batch | TaskBatch, batch_idx: int, view: int = 0) -> Tensor:
        """The view of a batch, float images in [0, 1]: new each time, or with cached logits always the same."""
        if self.views is None:
            return to_float(batch.image)
        if self.caches:
            return self.views(batch.image, self.key(batch, view)._replace(epoch=0))
        return super().view(batch, batch_idx, view)

    @torch.no_grad()
    def _of_teacher(self, seen: Batch, batch: Batch | TaughtBatch, layers: Sequence[str]) -> dict[str, Tensor]:
        if isinstance(batch, TaughtBatch):
            return {LOGITS: batch.teacher_logits}
        if {*layers} <= {LOGITS}:
            return {LOGITS: self.teacher_logits(seen.image)}
        return outputs(self.teacher.member, seen._replace(image=self.teacher.resized(seen.image)), layers)

    # Before training, and between steps

    def on_teacher_loaded(self) -> None:
        """Creates the parameters of the losses between layers, which depend on both networks."""
        super().on_teacher_loaded()
        if self.teacher.num_classes is None and (self.soft_weight or not len(self.layer_losses)):
            raise ValueError(
                f"the teacher {', '.join(self.teacher.sources)} has no classification head: set soft_weight to 0 "
                "and give layer_losses, or choose a run of a classifier"
            )
        if len(self.layer_losses):
            data, classes = self._data("losses between layers are made for"), self.head.out_features
            both = classes, self.teacher.num_classes
            images = len(data.splits.train)
            theirs = tuple(self.teacher.resized(torch.zeros(1, *data.image_shape)).shape[1:])
            self.layer_losses.build(self.encoder, self.teacher.encoder, both, (data.image_shape, theirs), images)

    def on_fit_start(self) -> None:
        """Asks the teacher for its logits of all images, where these are to be cached."""
        super().on_fit_start()
        if not self.caches or not (self.soft_weight or len(self.layer_losses)):  # nobody would read them
            return
        data = self._data("cached logits are those of")

        def view(batch: Batch) -> Tensor:
            return self.view(batch, 0)

        sizes = "" if set(self.teacher.scales) == {1.0} else f" {self.teacher.scales}"
        digest = self.teacher.digest + sizes
        self.cached = CachedLogits(self.logits_folder, self.teacher, digest, view, data, self.trainer)

    def _data(self, why: str) -> ImageDataModule:
        data = self.datamodule
        if not isinstance(data, ImageDataModule):
            raise ValueError(f"{why} the training images of a DataModule: pass one to fit")
        return data

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Adds the cached logits to training images, while both are on the CPU."""
        return self.cached.join(batch) if self.cached and self.trainer.training else batch

    def on_after_backward(self) -> None:
        """Lets losses between layers move what they remember, and drops gradients of what does not learn now."""
        self.layer_losses.after_backward()
        drop_gradients(self._idle.get(self.current_epoch < self.hint_epochs, []))

    def _zero_of_idle(self, loss: Tensor, hints: bool) -> Tensor | float:
        """0 × the parameters that the loss does not depend on: DDP wants a gradient of all at every step."""
        if not self.hint_epochs:
            return 0.0
        if hints not in self._idle:
            self._idle[hints] = parameters_without(loss, self)
        return zero_of(self._idle[hints])
