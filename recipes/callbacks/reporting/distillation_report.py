"""What a student took over from its teacher, and what the temperature shows of the teacher."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from datamodules import Batch
from recipes.callbacks.reporting.class_report import confusion, confusion_matrix
from recipes.evaluation.features import Collector, Features, extract
from recipes.plots.base import images_of, new_figure, picture_directory, save, shortened, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPERATURES = (1.0, 4.0, 20.0, 40.0)
BINS = 15  # of the calibration error (Guo et al., 2017, arXiv:1706.04599)
_RANGE = 0.01, 100.0  # of temperatures that are tried
_IMAGES = 6
_CLASSES = 10  # bars of an image
_NAME = 22  # letters of a name
_LINES = 100  # classes, up to which lines between them leave room for colour
_BAR, _RIGHT, _PALE, _GAP = "#4c78a8", "#1a9850", "#a6c8e4", "#d73027"


class Answers(NamedTuple):
    """What teacher and student say of a set of labelled images.

    Attributes:
        teacher: logits float64 [N, classes].
        student: the same.
        label: int64 [N].
        index: int64 [N], the position of each image in its dataset.
    """

    teacher: Tensor
    student: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class Reliability(NamedTuple):
    """How often a classifier is right, by how sure it is: the highest probability, in bins of equal width.

    Attributes:
        count: images of each bin, int64 [bins].
        accuracy: share of them that are right; not a number where there are none.
        confidence: mean of their highest probability; not a number where there are none.
    """

    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count
    accuracy: np.ndarray
    confidence: np.ndarray


class DistillationReport(Callback):
    """Compares student and teacher at the end of the test; does nothing for a recipe that has no teacher at hand.

    ``distillation.json`` in the run directory has the share of test images that both take for the same class, the
    accuracy and the expected calibration error (15 bins) of both, and the mean entropy of the teacher, in bits, at the
    temperatures 1, 4, 20 and 40. If there are validation images, it has the temperatures that suit them best, and the
    errors on the test images with their logits divided by these too (temperature scaling, Guo et al., 2017,
    arXiv:1706.04599).

    ``pictures/temperature.png`` shows the teacher's probabilities at the four temperatures for some test images;
    ``pictures/agreement.png`` which classes the student says where the teacher says which; ``pictures/calibration.png``
    how often both are right, by how sure they are. With a ``WandbLogger``, the pictures go to Weights & Biases too.
    Test images without a label take no part. Nothing is written under ``fast_dev_run``.
    """

    def __init__(self) -> None:
        self._said: Collector | None = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes room for what both say."""
        self._said = Collector(pl_module.device) if getattr(pl_module, "has_teacher", False) else None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the logits of both for a batch."""
        if self._said is not None:
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                self._said.add(_logits(pl_module, outputs, batch.image), batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins what was said on all devices, asks both about the validation images, and writes the report."""
        if self._said is None:
            return
        test, val = _answers(self._said.gather()), None
        self._said = None
        data: Any = getattr(trainer, "datamodule", None)
        if data is not None and hasattr(data, "splits") and data.splits.val is not None:
            both = extract({"both": _Both(pl_module)}, data.in_order(data.splits.val), trainer)["both"]
            val = _answers(both)
        pictures = picture_directory(trainer)
        if pictures is None or test is None:
            return
        recipe: Any = pl_module
        names = recipe.class_names or [str(number) for number in range(test.teacher.shape[1])]
        temperatures = {name: best_temperature(getattr(val, name), val.label) for name in _WHO} if val else {}
        pictures.mkdir(parents=True, exist_ok=True)
        report = comparison(test, temperatures, 0 if val is None else len(val.label))
        (pictures.parent / "distillation.json").write_text(json.dumps(report, indent=2) + "\n")
        save(agreement(test, names), pictures / "agreement.png", trainer)
        save(calibration(test, temperatures), pictures / "calibration.png", trainer)
        images = images_of(trainer.test_dataloaders)
        if images is not None:
            rows = spread(entropy(test.teacher))
            figure = softened(images(test.index[rows]), test.teacher[rows], test.label[rows], names, len(test.label))
            save(figure, pictures / "temperature.png", trainer)


_WHO = ("teacher", "student")


class _Both(nn.Module):
    """Maps images to the logits of teacher and student."""

    def __init__(self, recipe: LightningModule) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, image: Tensor) -> Tensor:
        return _logits(self.recipe, self.recipe(image), image)


def _logits(recipe: Any, feature: Tensor, image: Tensor) -> Tensor:
    """Those of the teacher, and next to them those of the student: [B, 2 × classes]."""
    return torch.cat([recipe.teacher_logits(image).float(), recipe.logits(feature).float()], 1)


def _answers(said: Features) -> Answers | None:
    """Those for the labelled images, on the CPU; None where there are none."""
    logits, label, index = said.labelled().to("cpu")
    if not len(label):
        return None
    teacher, student = logits.double().chunk(2, dim=1)
    return Answers(teacher, student, label, index)


def comparison(test: Answers, temperatures: Mapping[str, float], val_images: int) -> dict[str, Any]:
    """Measures teacher and student.

    Args:
        test: what they say of the test images.
        temperatures: of ``teacher`` and ``student``, that suit other images best; may be empty.
        val_images: how many of these there were.

    Returns:
        What ``distillation.json`` holds.
    """
    said = {name: getattr(test, name) for name in _WHO}
    errors: dict[str, dict[str, float | None]] = {}
    for name, logits in said.items():
        scaled = logits / temperatures[name] if name in temperatures else None
        errors[name] = {
            "before": calibration_error(logits, test.label),
            "after": None if scaled is None else calibration_error(scaled, test.label),
        }
    return {
        "split": "test",
        "images": len(test.label),
        "agreement": (test.teacher.argmax(1) == test.student.argmax(1)).double().mean().item(),
        "accuracy": {name: (x.argmax(1) == test.label).double().mean().item() for name, x in said.items()},
        "calibration_error": {"bins": BINS, **errors},
        "fitted_temperature": {"validation_images": val_images, **{name: temperatures.get(name) for name in _WHO}},
        "teacher_entropy_bits": {f"{t:g}": entropy(test.teacher, t).mean().item() for t in TEMPERATURES},
    }


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The entropy of softened probabilities, in bits: [N], from 0 to log2(classes).

    Args:
        logits: [N, classes].
        temperature: T, > 0, that the logits are divided by.
    """
    log_p = F.log_softmax(logits / temperature, dim=1)
    return -(log_p.exp() * log_p).sum(1) / math.log(2)


def best_temperature(logits: Tensor, label: Tensor) -> float:
    """The temperature, from 0.01 to 100, that gives the labels the highest likelihood (Guo et al., 2017).

    Where every image is right the likelihood has no maximum, and the temperature is one at which it is 1 in float64.

    Args:
        logits: float64 [N, classes], N > 0.
        label: int64 [N].
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return F.cross_entropy(logits / math.exp(log_t), label).item()

    bounds = math.log(_RANGE[0]), math.log(_RANGE[1])
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)


def calibration_error(logits: Tensor, label: Tensor) -> float:
    """The expected calibration error in [0, 1]: by how much confidence and accuracy differ in a bin, in the mean.

    Args:
        logits: [N, classes].
        label: int64 [N].
    """
    return multiclass_calibration_error(logits.softmax(1), label, logits.shape[1], n_bins=BINS, norm="l1").item()


def reliability(logits: Tensor, label: Tensor) -> Reliability:
    """Accuracy and confidence in the bins of the calibration error.

    Args:
        logits: [N, classes].
        label: int64 [N].
    """
    confidence, said = logits.softmax(1).max(1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    count, sure, right = (
        torch.bincount(place, weights, BINS).numpy() for weights in (None, confidence, (said == label).double())
    )
    with np.errstate(invalid="ignore"):
        return Reliability(count, right / count, sure / count)


def spread(surprise: Tensor, images: int = _IMAGES) -> Tensor:
    """Chooses images at equal distances in the order of a number [N], from the lowest to the highest: [images]."""
    order = surprise.argsort(stable=True)
    return order[torch.linspace(0, len(order) - 1, min(images, len(order))).round().long()]


def softened(images: Tensor, logits: Tensor, label: Tensor, names: Sequence[str], of: int) -> Figure:
    """Draws what a teacher says of images at several temperatures; of many classes, the most probable ten.

    Args:
        images: [B, C, H, W], uint8 or float in [0, 1].
        logits: of the teacher [B, classes].
        label: int64 [B].
        names: of the classes.
        of: how many images they were chosen from.
    """
    classes = len(names)
    shown = min(classes, _CLASSES)
    height = max(1.3, 0.15 * shown + 0.45)
    room = 0.08 * max(len(shortened(name, _NAME)) for name in names)  # inches beside the bars
    figure = new_figure(1.6 + room + 1.8 * len(TEMPERATURES), 1.0 + height * len(images))
    widths = [1.0, *[1.25] * len(TEMPERATURES)]
    grid = figure.subplots(len(images), 1 + len(TEMPERATURES), squeeze=False, width_ratios=widths)
    for number, (row, image, logit, true) in enumerate(zip(grid, images, logits, label.tolist())):
        show(row[0], image)
        row[0].set_xlabel(shortened(names[true], _NAME), fontsize=7, color=_RIGHT, parse_math=False)
        chosen = torch.arange(classes) if classes == shown else logit.topk(shown).indices
        for axes, temperature in zip(row[1:], TEMPERATURES):
            probability = (logit / temperature).softmax(0)[chosen]
            colours = [_RIGHT if i == true else _BAR for i in chosen.tolist()]
            axes.barh(range(shown), probability.tolist(), color=colours)
            axes.set_ylim(shown - 0.4, -0.6)
            axes.set_xlim(0, 1.08 * probability.max().item())
            axes.locator_params(axis="x", nbins=3)
            axes.tick_params(axis="x", labelsize=7)
            axes.tick_params(axis="y", length=0)
            axes.set_yticks(range(shown), [])
            bits = entropy(logit[None], temperature).item()
            head = "" if number else f"T = {temperature:g}\n"
            axes.set_title(f"{head}{bits:.2f} bits", fontsize=9)
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
        row[1].set_yticklabels([shortened(names[i], _NAME) for i in chosen], fontsize=7, parse_math=False)
    ten = "" if classes == shown else f" of the {shown} most probable of {classes:,} classes"
    figure.suptitle(
        f"The teacher's probabilities{ten} at several temperatures\n"
        "(each panel has a scale of its own; green is the right class)\n"
        f"{len(images)} of {of:,} test images, in equal steps from the one with the least entropy to the one with the "
        "most",
        fontsize=10,
    )
    return figure


def agreement(test: Answers, names: Sequence[str]) -> Figure:
    """Draws how often the student says which class (columns) where the teacher says which (rows).

    Args:
        test: what they say.
        names: of the classes.
    """
    matrix = confusion(test.teacher.argmax(1), test.student.argmax(1), len(names))
    figure = confusion_matrix(matrix, names)
    axes, bar = figure.axes
    axes.set_ylabel("class that the teacher says")
    axes.set_xlabel("class that the student says")
    bar.set_ylabel("share of the teacher's class (%)")
    if len(names) > _LINES:
        axes.set_xticks([], minor=True)
        axes.set_yticks([], minor=True)
    grey = "" if matrix.sum(1).all() else " (grey: of no image)"
    same = 100 * matrix.diagonal().sum() / matrix.sum()
    figure.suptitle(
        f"Teacher and student on {matrix.sum():,} test images{grey}\nthey agree on {same:.1f} %", fontsize=11
    )
    return figure


def calibration(test: Answers, temperatures: Mapping[str, float]) -> Figure:
    """Draws how often teacher and student are right, by how sure they are, before and after temperature scaling.

    Args:
        test: what they say.
        temperatures: of ``teacher`` and ``student``; if empty, only what is before is drawn.
    """
    columns = 2 if temperatures else 1
    figure = new_figure(0.6 + 3.6 * columns, 7.8)
    grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey=True)
    for row, name in zip(grid, _WHO):
        for axes, temperature in zip(row, (1.0, temperatures.get(name, 1.0))):
            logits = getattr(test, name) / temperature
            _diagram(axes, reliability(logits, test.label))
            scaled = f"T = {temperature:.3g}" if axes is not row[0] else "as it is"
            error = 100 * calibration_error(logits, test.label)
            axes.set_title(f"{name}, {scaled}\ncalibration error {error:.1f} %", fontsize=10)
        row[0].set_ylabel("right (%)")
    for axes in grid[-1]:
        axes.set_xlabel("highest probability (%)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2 * columns, frameon=False, fontsize=9)
    figure.suptitle(f"Calibration on {len(test.label):,} test images", fontsize=11)
    return figure


def _diagram(axes: Axes, bins: Reliability) -> None:
    edges = 100 * np.arange(BINS + 1) / BINS
    middle, width = (edges[1:] + edges[:-1]) / 2, 100 / BINS
    axes.bar(middle, 100 * bins.accuracy, width, color=_PALE, edgecolor="white", linewidth=0.5, label="right")
    low, high = np.fmin(bins.accuracy, bins.confidence), np.fmax(bins.accuracy, bins.confidence)
    gap: dict[str, Any] = {"facecolor": "none", "edgecolor": _GAP, "hatch": "////", "linewidth": 0.5}
    axes.bar(middle, 100 * (high - low), width, bottom=100 * low, label="gap to the mean probability", **gap)
    axes.stairs(100 * bins.count / bins.count.sum(), edges, color="black", label="share of the images")
    axes.plot([0, 100], [0, 100], color="black", linewidth=0.8, linestyle="--", label="no error")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_aspect("equal")
