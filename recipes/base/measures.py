"""Measures that need labels: they have no value without, and a run that relies on such a value does not start."""

from typing import Any, TypeGuard

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, SumMetric
from torchmetrics.wrappers.abstract import WrapperMetric

from datamodules import ImageDataModule
from datamodules.base import is_labelled

_SPLITS = {"fit": ("val", "test"), "validate": ("val",), "test": ("test",)}  # that a stage of the Trainer measures on
_OUR_HOMES = ("recipes.", "lightning.")  # of classes whose measures are known
_WORDS = {"val": "validation", "test": "test"}


class LabelledMetric(WrapperMetric):
    """A metric over the labelled images of an epoch, on all devices.

    Without a labelled image it has no value: ``compute`` returns None, and Lightning logs nothing.

    Args:
        name: name under which the metric is logged, such as ``val/accuracy``.
        metric: its ``update`` takes a row for each image and the labels, -1 where unlabelled.
    """

    def __init__(self, name: str, metric: Metric) -> None:
        super().__init__()
        self.name = name
        self.metric = metric
        self.labelled = SumMetric(nan_strategy="disable")  # or the host would wait for a GPU, to look for NaN

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds a batch."""
        if self.labelled.sum_value.is_inference() and not torch.is_inference_mode_enabled():
            self.reset()  # Trainer.validate leaves empty sums that fit cannot add to
        self.labelled.update((label >= 0).sum())
        self.metric.update(prediction, label)

    def forward(self, prediction: Tensor, label: Tensor) -> None:
        """Adds a batch; there is no value for the batch alone."""
        self.update(prediction, label)

    def compute(self) -> Tensor | None:
        """Returns the value over all devices."""
        return self.metric.compute() if self.labelled.compute() > 0 else None

    def reset(self) -> None:
        """Forgets all batches."""
        super().reset()
        self.metric.reset()
        self.labelled.reset()


class CrossEntropy(Metric):
    """Cross-entropy, the mean over the labelled images, in the dtype of ``set_dtype``."""

    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds a batch of logits [B, classes] and labels [B], -1 where unlabelled."""
        self.total += F.cross_entropy(prediction, label, ignore_index=-1, reduction="sum").to(self.total)
        self.images += (label >= 0).sum()

    def compute(self) -> Tensor:
        """Returns the mean; NaN without a labelled image."""
        return self.total / self.images


class Share(Metric):
    """The share of images for which something holds. Unlike those of torchmetrics, it does not wait for a GPU."""

    number: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("number", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("images", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, holds: Tensor, counts: Tensor) -> None:
        """Adds a batch: for which images it holds, and which of them count, both bool [B]."""
        self.number += (holds & counts).sum()
        self.images += counts.sum()

    def compute(self) -> Tensor:
        """Returns the share; NaN without an image."""
        return self.number / self.images


class Accuracy(Share):
    """The share of the labelled images whose largest logit is that of their class."""

    def update(self, prediction: Tensor, label: Tensor) -> None:
        """Adds a batch of logits [B, classes] and labels [B], -1 where unlabelled."""
        super().update(prediction.argmax(1) == label, label >= 0)


def accuracy(name: str) -> LabelledMetric:
    """The accuracy over the labelled images."""
    return LabelledMetric(name, Accuracy())


def check_measures(recipe: LightningModule, stage: str) -> None:
    """Tells what is not measured for want of labels, and refuses callbacks that rely on it.

    Args:
        recipe: in ``setup``, with the Trainer and its DataModule.
        stage: stage of the Trainer.

    Raises:
        ValueError: before training, if a callback monitors a measure that this run does not have.
    """
    data = getattr(recipe.trainer, "datamodule", None)
    if not isinstance(data, ImageDataModule):
        return
    if stage == "fit":
        for callback in _callbacks(recipe):
            check_monitor(recipe, getattr(callback, "monitor", None), type(callback).__name__)
    for split in _SPLITS.get(stage, ()):
        images, names = getattr(data.splits, split), _need_labels(recipe, split)
        if images is not None and names and not is_labelled(images):
            rank_zero_info(
                f"none of the {len(images):,} {_WORDS[split]} images has a label: {', '.join(names)} are not measured"
            )


def is_of_validation(monitor: str | None) -> TypeGuard[str]:
    """Whether a monitored value is a measure on validation images, and not one of the training or its progress."""
    return monitor is not None and not monitor.startswith("train/") and monitor not in ("epoch", "step")


def check_monitor(recipe: LightningModule, monitor: str | None, name: str) -> None:
    """Checks that a run has the measure that a callback or a schedule monitors.

    Args:
        recipe: with the Trainer and its DataModule.
        monitor: name of the measure, such as ``val/loss``.
        name: name of the class that monitors it.

    Raises:
        ValueError: if the run cannot have it: without validation images, without labels, or because nothing measures
            it. A recipe or callback of the user may measure anything.
    """
    data: Any = getattr(recipe.trainer, "datamodule", None)
    if not is_of_validation(monitor) or not isinstance(data, ImageDataModule):
        return
    val = data.splits.val
    if not monitor.startswith("val/") and not _unless_others(recipe, monitor):
        return
    if val is None:
        reason, remedy = "there are no validation images", "give some (val_fraction, or a folder val)"
    elif recipe.trainer.limit_val_batches == 0:
        reason, remedy = "trainer.limit_val_batches is 0", "raise it"
    elif not is_labelled(val) and monitor in _need_labels(recipe, "val"):
        reason, remedy = "none of the validation images has a label", "label them, such as by class folders"
    elif known := _unless_others(recipe, monitor):
        reason, remedy = f"on validation images, it measures {', '.join(known)}", "choose one of these"
    else:
        return
    raise ValueError(
        f"{name} monitors {monitor}, which is not measured in this run: {reason}. Either {remedy}, or monitor another "
        f"measure, such as train/loss, or leave {name} out"
    )


def _need_labels(recipe: LightningModule, split: str) -> list[str]:
    """The names of all measures on a split that need labels: those of the recipe and of callbacks."""
    own = [module.name for module in recipe.modules() if isinstance(module, LabelledMetric)]
    return _of_split(split, [*own, *_declared(recipe, "labelled_measures")])


def _unless_others(recipe: LightningModule, monitor: str) -> list[str]:
    """The names of all measures on validation images, unless one is ``monitor`` or may be of a class of the user."""
    known = [*_need_labels(recipe, "val"), *_of_split("val", _declared(recipe, "other_measures"))]
    ours = all(type(part).__module__.startswith(_OUR_HOMES) for part in (recipe, *_callbacks(recipe)))
    return known or ["nothing"] if ours and monitor not in known else []


def _declared(recipe: LightningModule, attribute: str) -> list[str]:
    return [name for part in (recipe, *_callbacks(recipe)) for name in getattr(part, attribute, ())]


def _callbacks(recipe: LightningModule) -> list[Any]:
    return recipe.trainer.callbacks  # type: ignore[attr-defined]


def _of_split(split: str, names: list[str]) -> list[str]:
    return [name for name in names if name.startswith(f"{split}/")]
