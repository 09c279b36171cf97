"""What recipes that learn from labels share: a head that gives logits, and accuracies."""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from datamodules import Batch, ImageDataModule
from datamodules.base import listed_classes
from losses.precision import at_least_float32
from recipes.base.checks import check_labels
from recipes.base.measures import CrossEntropy, LabelledMetric, accuracy
from recipes.base.recipe import Recipe
from recipes.errors import CheckpointMismatch
from recipes.nn import Encoder


class Classifier(Recipe):
    """An encoder with a linear layer on top that gives the logits of the classes. A subclass writes ``training_step``.

    Args:
        num_classes: number of classes, > 1. The ``recipes`` command takes it from the DataModule.
        Other arguments: see ``Recipe``.

    Attributes:
        class_names: of the labels 0, 1, ..., once the data is known; they are kept in checkpoints.
        has_probabilities: whether the softmax of the logits is a probability of the classes; the logits are scores if
            not.
        learns_without_labels: whether images without labels alone are enough to train on.

    Raises:
        ValueError: if ``num_classes`` is out of range; at the start of training, if there are fewer labelled images
            than classes.
    """

    has_probabilities = True
    _marks = (*Recipe._marks, "class_names")

    @property
    def learns_without_labels(self) -> bool:
        """Whether images without labels alone are enough to train on."""
        return False

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, optimizer, scheduler, lr_batch_size)
        if num_classes < 2:
            raise ValueError(
                f"num_classes is {num_classes}: classification needs at least 2; are the images labelled, and in a "
                "folder for each class?"
            )
        self.head = nn.Linear(self.feature_dim, num_classes)
        self.class_names: tuple[str, ...] = ()
        self.val_loss = LabelledMetric("val/loss", CrossEntropy())
        self.val_accuracy = accuracy("val/accuracy")
        self.test_accuracy = accuracy("test/accuracy")

    def setup(self, stage: str) -> None:
        """Takes the names of the classes from the DataModule too, and checks that there are enough images.

        A trained recipe keeps its own: it trains on with the same classes alone, and elsewhere those of the data are
        matched by name.
        """
        super().setup(stage)
        data = self.datamodule
        names = tuple(getattr(data, "class_names", ()))
        if not self.trained or not self.class_names:
            self.class_names = names or self.class_names
        elif stage == "fit":
            _check_same("the recipe", self.class_names, names)
        else:
            self._match_data(self.class_names, stage)
        if stage != "predict" and isinstance(data, ImageDataModule):
            splits = (data.splits.train, data.splits.val) if stage != "test" else (data.splits.test,)
            for images in splits:
                if images is not None:
                    check_labels(self, images.label)
        if stage == "fit" and isinstance(data, ImageDataModule):
            labelled, classes = int((data.splits.train.label >= 0).sum()), self.head.out_features
            classes -= data.classes_without_images
            if labelled < classes and not (self.learns_without_labels and not labelled):
                raise ValueError(
                    f"{type(data).__name__} has {labelled} labelled training images for {classes} classes: training "
                    "needs at least one image of each class"
                )

    def logits(self, feature: Tensor) -> Tensor:
        """Maps features [B, F] to logits [B, classes], in float32 or, for a recipe in float64, in that."""
        return at_least_float32(self.head(feature))

    def classify(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W], uint8 or float in [0, 1], to the logits [B, classes] that predict their classes."""
        return self.logits(self(image))

    def batch_logits(self, batch: Batch, feature: Tensor) -> Tensor:
        """Returns the logits [B, classes] that predict the classes of a batch: for steps, predictions and reports.

        Args:
            batch: the images.
            feature: their features [B, F], as ``feature`` and the steps give them.
        """
        return self.logits(feature)

    def feature(self, batch: Batch) -> Tensor:
        """The features [B, F] of a batch; where they were computed before, the loader gives them in place of images."""
        return batch.image if batch.image.ndim == 2 else self(batch.image)

    def on_validation_epoch_start(self) -> None:
        """Computes the mean of the loss as exactly as the weights: metrics stay in float32 when a recipe changes."""
        self.val_loss.metric.set_dtype(torch.promote_types(next(self.parameters()).dtype, torch.float32))

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs ``val/loss`` and ``val/accuracy``; returns the features [B, F]."""
        feature = self.feature(batch)
        logits = self.step_columns["logits"] = self.batch_logits(batch, feature)
        self.measure(self.val_loss, logits, batch.label)
        self.measure(self.val_accuracy, logits, batch.label)
        return feature

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs ``test/accuracy``; returns the features [B, F]."""
        feature = self.feature(batch)
        logits = self.step_columns["logits"] = self.batch_logits(batch, feature)
        self.measure(self.test_accuracy, logits, batch.label)
        return feature

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns features [B, F], class probabilities [B, classes] and indices [B].

        A classifier without probabilities returns its logits, as ``score`` [B, classes].
        """
        feature = self.feature(batch)
        logits = self.batch_logits(batch, feature)
        of_classes = {"probability": logits.softmax(1)} if self.has_probabilities else {"score": logits}
        return {"index": batch.index, "feature": feature, **of_classes}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the names of the classes."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["class_names"] = list(self.class_names)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the names of the classes from a checkpoint; refuses to resume on data with other classes."""
        theirs = tuple(checkpoint.get("class_names", ()))
        stage = None if self._trainer is None else self._trainer.state.fn
        if stage == TrainerFn.FITTING:
            _check_same("the checkpoint", theirs, self.class_names)
        super().on_load_checkpoint(checkpoint)
        if theirs and stage not in (None, TrainerFn.FITTING):
            self._match_data(theirs, stage)
        self.class_names = theirs or self.class_names

    def _match_data(self, names: tuple[str, ...], stage: str) -> None:
        """Numbers the labels of the data like the classes; only predictions are made for unknown ones."""
        if isinstance(self.datamodule, ImageDataModule):
            self.datamodule.match_classes(names, strict=stage != "predict")


def _check_same(trained: str, theirs: tuple[str, ...], ours: tuple[str, ...]) -> None:
    """Raises a CheckpointMismatch if data with the classes ``ours`` is given to what was ``trained`` on ``theirs``."""
    if theirs and ours and theirs != ours:
        raise CheckpointMismatch(
            f"{trained} knows {listed_classes(theirs)}, and the data has {listed_classes(ours)}: give data with the "
            "same classes, or pictures without class folders"
        )
