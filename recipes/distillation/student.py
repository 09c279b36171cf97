"""Base of the recipes with a teacher: loads the teacher, keeps it frozen, and measures the agreement."""

from contextlib import suppress
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules import Batch
from recipes.base.classifier import Classifier
from recipes.base.measures import LabelledMetric, Share, accuracy
from recipes.distillation.teacher import Teacher, teacher_from, unpacked
from recipes.evaluation.calibration import CalibrationError
from recipes.nn import Encoder


class Student(Classifier):
    """A classifier that is trained with a teacher. A subclass writes ``training_step``.

    The teacher is loaded when training starts. It is not a submodule of the student, so the student's parameters and
    checkpoints do not include it, and ``train()`` does not change it. It uses the Trainer's device and precision.

    Args:
        teacher: source of the teacher (see ``teacher_from``), several sources, or a ``Teacher``. The logits of several
            teachers are averaged. If null, there is no teacher.
        keep_teacher: whether checkpoints contain the teacher, so that a run can resume without the teacher's file. They
            always contain the file's path and a hash of the weights.
        Other arguments: see ``Classifier``.

    Raises:
        ValueError: if ``num_classes`` is out of range; at the start of training, if the teacher has other classes or
            cannot take the images, or is not the one that the run began with.
        FileNotFoundError: at the start of training, if there is no such teacher.
    """

    other_measures: ClassVar[tuple[str, ...]] = ("val/agreement",)  # that need no labels
    # With these the names of parameters begin that belong to training: without a teacher, they are not loaded.
    only_with_teacher: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        teacher: Teacher | str | list[str] | None,
        keep_teacher: bool,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, num_classes, optimizer, scheduler, lr_batch_size)
        self.teacher_from = None if isinstance(teacher, Teacher) else teacher
        self.keep_teacher = keep_teacher
        self._teacher = [teacher] if isinstance(teacher, Teacher) else []  # a list, so that it is no submodule
        self.val_agreement, self.test_agreement = Share(), Share()
        self.val_teacher_accuracy, self.test_teacher_accuracy = (
            accuracy(f"{split}/teacher_accuracy") for split in ("val", "test")
        )
        self.test_calibration_error = LabelledMetric("test/calibration_error", CalibrationError())

    @property
    def has_teacher(self) -> bool:
        """Whether the teacher is loaded and tells classes apart."""
        return bool(self._teacher) and self.teacher.num_classes is not None

    @property
    def teacher(self) -> Teacher:
        """The teacher, once training has started.

        Raises:
            RuntimeError: before that.
        """
        if not self._teacher:
            raise RuntimeError(f"the teacher of this {type(self).__name__} is loaded when training starts")
        return self._teacher[0]

    def teacher_logits(self, image: Tensor) -> Tensor:
        """Returns the teacher's logits [B, classes] for images [B, C, H, W], uint8 or float in [0, 1], no gradient."""
        return self.teacher(image)

    # The teacher's life: ``setup`` loads it before training or, if its file is gone, ``on_load_checkpoint`` takes it
    # from the checkpoint that the run resumes from (``keep_teacher``). If neither has found it, ``on_fit_start`` raises
    # the error. Validation, test and prediction without training do without a teacher.

    def load_teacher(self, packed: list[dict[str, Any]] | None = None) -> None:
        """Loads the teacher unless it is there, and checks that it suits the student and the images.

        Args:
            packed: the teacher from a checkpoint. If None, loads the teacher from ``teacher``.

        Raises:
            FileNotFoundError: if there is no such run or file.
            ValueError: if the teacher does not suit (``on_teacher_loaded``).
        """
        if not self._teacher and self.teacher_from is not None:
            self._teacher = [teacher_from(self.teacher_from) if packed is None else unpacked(packed)]
        if self._teacher:
            self.on_teacher_loaded()

    def on_teacher_loaded(self) -> None:
        """Checks that the teacher suits the student and the images; both are there now.

        Raises:
            ValueError: if it has other classes, or cannot take the images.
        """
        if self.teacher_from is not None:
            rank_zero_info(f"teacher: {', '.join(self.teacher.sources)}")
        self._check_teacher()
        self.class_names = self.class_names or self.teacher.class_names

    def setup(self, stage: str) -> None:
        """Loads the teacher before training."""
        super().setup(stage)
        if stage == "fit":
            with suppress(FileNotFoundError):
                self.load_teacher()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes a teacher whose file is gone from the checkpoint, and refuses to resume with another teacher."""
        noted = checkpoint.get("teacher", {})
        if self._lacks_teacher and "packed" in noted:
            self.load_teacher(noted["packed"])
        if noted and self._teacher and noted["sha256"] != self.teacher.digest:
            raise ValueError(
                f"the run began with the teacher {', '.join(noted['sources'])}, and {', '.join(self.teacher.sources)} "
                "has other weights: give the first as --model.teacher, or begin a new run"
            )
        if not self._teacher:
            state = checkpoint["state_dict"]
            for name in [name for name in state if name.startswith(self.only_with_teacher)]:
                del state[name]
        super().on_load_checkpoint(checkpoint)

    @property
    def _lacks_teacher(self) -> bool:
        """Whether a training run has begun without the teacher that it needs."""
        fitting = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        return fitting and not self._teacher and self.teacher_from is not None

    def on_fit_start(self) -> None:
        """Takes the teacher to the student's device and number type."""
        if self._lacks_teacher:
            self.load_teacher()
        self._move_teacher()

    def on_test_start(self) -> None:
        """Does the same where a test is not preceded by training."""
        self._move_teacher()

    def _move_teacher(self) -> None:
        if self._teacher:
            self.lend(self.teacher)
            self.teacher.to(self.head.weight)

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs ``val/agreement`` and ``val/teacher_accuracy`` too, while the teacher is there."""
        feature = super().validation_step(batch, batch_idx)
        if self.has_teacher:
            taught = self.step_columns["teacher_logits"] = self.teacher_logits(batch.image)
            self.val_agreement(taught.argmax(1) == self.logits(feature).argmax(1), batch.index >= 0)
            self.log("val/agreement", self.val_agreement)
            self.measure(self.val_teacher_accuracy, taught, batch.label)
        return feature

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs ``test/calibration_error``, and, while the teacher is there, what ``validation_step`` does."""
        feature = super().test_step(batch, batch_idx)
        logits = self.logits(feature)
        self.measure(self.test_calibration_error, logits, batch.label)
        if self.has_teacher:
            taught = self.step_columns["teacher_logits"] = self.teacher_logits(batch.image)
            self.test_agreement(taught.argmax(1) == logits.argmax(1), batch.index >= 0)
            self.log("test/agreement", self.test_agreement)
            self.measure(self.test_teacher_accuracy, taught, batch.label)
        return feature

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes who the teacher is, and keeps it where that is wanted."""
        super().on_save_checkpoint(checkpoint)
        if self._teacher:
            note = {"sources": self.teacher.sources, "sha256": self.teacher.digest}
            checkpoint["teacher"] = note | ({"packed": self.teacher.packed()} if self.keep_teacher else {})

    def _check_teacher(self) -> None:
        classes, source = self.head.out_features, ", ".join(self.teacher.sources)
        if self.teacher.num_classes not in (None, classes):
            raise ValueError(
                f"the teacher {source} has {self.teacher.num_classes} classes, and the data {classes}: choose a "
                "teacher that was trained on these classes"
            )
        ours, theirs = self.class_names, self.teacher.class_names
        if ours and theirs and ours != theirs:
            differ = next(f"{ours[i]!r} here and {theirs[i]!r} there" for i in range(classes) if ours[i] != theirs[i])
            raise ValueError(
                f"the teacher {source} was trained on other classes, such as {differ} under the same number: choose a "
                "teacher that was trained on these classes, in the same order"
            )
        if self.image_shape is None:
            return
        height, width = self.image_shape[1:]
        self.teacher.fit_to(height if height == width else None)
        try:
            for number, member in enumerate(self.teacher.members):
                encoder: Any = member.encoder
                with torch.no_grad():
                    image = self.teacher.resized(torch.zeros(1, *self.image_shape), number)
                    encoder(image.to(next(encoder.parameters())))
        except (RuntimeError, ValueError) as error:
            shape = " × ".join(map(str, self.image_shape))
            raise ValueError(
                f"the teacher {source} cannot take these images of {shape} (channels × height × width): "
                f"{str(error).splitlines()[0]}"
            ) from error
