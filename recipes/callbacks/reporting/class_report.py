"""What a classifier gets right and wrong, class by class and picture by picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules import Batch
from recipes.base.classifier import Classifier
from recipes.callbacks.reporting.predictions import file_names
from recipes.evaluation.features import Collector
from recipes.plots.base import images_of, new_figure, picture_directory, save, shortened, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DARK = 0.35  # share of a class from which the number of images is white
_COUNTED = 20  # classes, up to which cells have room for their number of images
_NAMED = 100  # classes, up to which every one is named
_COLUMNS = 6  # of the sheet of mistakes
_NAME = 22  # letters of a name


class Mistake(NamedTuple):
    """An image that the classifier takes for another class.

    Attributes:
        index: position of the image in its dataset.
        file: of the image, below the root of the data; None where images are no files.
        true: name of its class.
        predicted: name of the class that it is taken for.
        confidence: probability that the classifier gives to that class, in [0, 1]; of an SVM, its decision value.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    file: str | None
    true: str
    predicted: str
    confidence: float


class ClassReport(Callback):
    """Reports at the end of the test what a classifier confuses; does nothing for a recipe without a classifier.

    ``classes.json`` in the run directory has, for each class, precision, recall, F1 and the number of test images
    (``support``), null where there is nothing to divide by; their means over the classes that have a value
    (``macro``); the confusion matrix, a row for each true class; and the worst mistakes, those with the highest
    confidence in a wrong class. ``pictures/confusion.png`` shows the matrix, ``pictures/mistakes.png`` the images of
    the worst mistakes. With a ``WandbLogger``, the pictures go to Weights & Biases too. Test images without a label
    take no part. Nothing is written under ``fast_dev_run``.

    Args:
        mistakes: at most so many of the worst mistakes are reported, >= 0; 0 leaves them out.

    Raises:
        ValueError: if ``mistakes`` is negative.
    """

    def __init__(self, mistakes: int = 24) -> None:
        if mistakes < 0:
            raise ValueError(f"mistakes is {mistakes}: it must be at least 0 (leaves the sheet of mistakes out)")
        self.mistakes = mistakes
        self._said: Collector | None = None
        self._classes = 0

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes room for what the classifier says."""
        self._said = Collector(pl_module.device) if isinstance(pl_module, Classifier) else None

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the most probable class of each image, and its probability."""
        if self._said is None or not isinstance(pl_module, Classifier):
            return
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            logits = pl_module.batch_logits(batch, outputs)
            confidence, said = (logits.softmax(1) if pl_module.has_probabilities else logits).max(1)
        self._said.add(torch.stack([said.to(confidence.dtype), confidence], 1), batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins what was said on all devices, and writes the report."""
        if self._said is None or not isinstance(pl_module, Classifier):
            return
        (said, confidence), label, index = _columns(self._said)
        self._said = None
        pictures = picture_directory(trainer)
        if pictures is None or not len(label):
            return
        classes = pl_module.head.out_features
        names = pl_module.class_names or [str(number) for number in range(classes)]
        matrix = confusion(label, said, classes)
        wrong = (said != label).nonzero().flatten()
        worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][: self.mistakes]
        loader: Any = trainer.test_dataloaders
        files = file_names(getattr(trainer, "datamodule", None), loader)
        mistakes = [
            Mistake(
                index=(i := int(index[row])),
                file=files[i] if files else None,
                true=names[label[row]],
                predicted=names[said[row]],
                confidence=confidence[row].item(),
            )
            for row in worst
        ]
        report = {**scores(matrix, names), "mistakes": [mistake._asdict() for mistake in mistakes]}
        pictures.mkdir(parents=True, exist_ok=True)
        (pictures.parent / "classes.json").write_text(json.dumps(report, indent=2) + "\n")
        save(confusion_matrix(matrix, names), pictures / "confusion.png", trainer)
        images = images_of(loader)
        if mistakes and images is not None:
            title = f"The {len(mistakes)} most confident of {len(wrong):,} mistakes"
            if len(mistakes) == len(wrong):
                title = "The only mistake" if len(wrong) == 1 else f"All {len(wrong)} mistakes"
            title += f" on {len(label):,} test images"
            sheet = mistake_sheet(images(index[worst]), mistakes, title, pl_module.has_probabilities)
            save(sheet, pictures / "mistakes.png", trainer)


def confusion(label: Tensor, said: Tensor, classes: int) -> np.ndarray:
    """Counts images by their true class (rows) and the class they are taken for (columns).

    Args:
        label: int64 [N], the true classes.
        said: int64 [N], the classes that a classifier says.
        classes: how many there are.
    """
    return torch.bincount(label * classes + said, minlength=classes**2).view(classes, classes).numpy()


def scores(matrix: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Precision, recall, F1 and support of each class, and their means.

    Args:
        matrix: images by true class (rows) and predicted class (columns), [classes, classes].
        names: of the classes.

    Returns:
        What ``classes.json`` holds. A precision without predictions and a recall without images is None, and F1 where
        both are; a mean is taken over the classes that have the value.
    """
    right, predicted, support = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    with np.errstate(invalid="ignore"):
        columns = {
            "precision": right / predicted,
            "recall": right / support,
            "f1": 2 * right / (predicted + support),
        }
    per_class = [
        {
            "name": name,
            **{column: _number(values[i]) for column, values in columns.items()},
            "support": int(support[i]),
        }
        for i, name in enumerate(names)
    ]
    return {
        "split": "test",
        "images": int(matrix.sum()),
        "accuracy": _number(right.sum() / matrix.sum()),
        "macro": {column: _number(np.nanmean(values)) for column, values in columns.items()},
        "classes": per_class,
        "confusion": matrix.tolist(),
    }


def confusion_matrix(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Draws a confusion matrix; the colour is the share of the images of a true class.

    Args:
        matrix: images by true class (rows) and predicted class (columns), [classes, classes].
        names: of the classes.
    """
    from matplotlib import colormaps
    from matplotlib.colors import PowerNorm

    classes = len(names)
    few = classes <= _COUNTED
    labels = [shortened(name, _NAME) for name in names]
    room = 0.08 * max(map(len, labels))  # inches beside and below the matrix
    side = max(3.2, 0.5 * classes) if few else min(max(10.0, 0.16 * classes), 16.0)
    figure = new_figure(side + room + 1.6, side + room + 1.3)
    axes = figure.add_subplot()
    support = matrix.sum(1, keepdims=True)
    share = np.where(support > 0, matrix / np.maximum(support, 1), np.nan)
    cmap = colormaps["Blues"].with_extremes(bad="0.85")
    norm = PowerNorm(0.5, vmin=0, vmax=100)  # so that rare confusions are seen
    drawn = axes.imshow(100 * share, cmap=cmap, norm=norm, interpolation="nearest")
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7, aspect=30, pad=0.02, ticks=[0, 1, 5, 10, 20, 40, 60, 80, 100])
    bar.set_label("share of the true class (%)")
    step = -(-classes // _NAMED)
    text: dict[str, Any] = {"labels": labels[::step], "fontsize": 9 if few else 7, "parse_math": False}
    axes.set_yticks(range(0, classes, step), **text)
    if max(map(len, labels)) > 3:
        text |= {"rotation": 90, "ha": "right", "va": "center", "rotation_mode": "anchor"}
    axes.set_xticks(range(0, classes, step), **text)
    if few:
        for i, j in np.argwhere(matrix):
            colour = "white" if share[i, j] > _DARK else "0.15"
            axes.text(j, i, f"{matrix[i, j]}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(np.arange(-0.5, classes), minor=True)
    axes.set_yticks(np.arange(-0.5, classes), minor=True)
    axes.grid(which="minor", color="0.92", linewidth=0.5)
    axes.tick_params(which="minor", length=0)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    accuracy = 100 * matrix.diagonal().sum() / matrix.sum()
    grey = "" if support.all() else " (grey: no images)"
    figure.suptitle(f"Confusion of {matrix.sum():,} test images{grey}\naccuracy {accuracy:.1f} %", fontsize=11)
    return figure


def mistake_sheet(images: Tensor, mistakes: Sequence[Mistake], title: str, probabilities: bool = True) -> Figure:
    """Draws images with the class that they have and the one they are taken for.

    Args:
        images: [B, C, H, W], uint8 or float in [0, 1].
        mistakes: what is said of each, B > 0.
        title: above all.
        probabilities: whether confidences are probabilities.
    """
    columns = min(_COLUMNS, len(mistakes))
    rows = -(-len(mistakes) // columns)
    lines = 3 if mistakes[0].file else 2
    width = max(4.2, 1.75 * columns)
    figure = new_figure(width, 0.75 + (min(width / columns, 2.1) + 0.16 * lines) * rows)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in grid[len(mistakes) :]:
        axes.set_axis_off()
    for axes, image, mistake in zip(grid, images, mistakes):
        show(axes, image)
        true, predicted = shortened(mistake.true, _NAME), shortened(mistake.predicted, _NAME - 7)
        confidence = f"{100 * mistake.confidence:.0f} %" if probabilities else f"{mistake.confidence:.1f}"
        caption = [true, f"→ {predicted}  {confidence}"]
        caption += [_end(mistake.file)] if mistake.file else []
        axes.set_xlabel("\n".join(caption), fontsize=8, parse_math=False)
    number = "probability" if probabilities else "decision value"
    figure.suptitle(f"{title}\ntrue class → predicted class and its {number}", fontsize=11)
    return figure


def _columns(collector: Collector) -> tuple[list[Tensor], Tensor, Tensor]:
    """What was said with which confidence, the labels and the indices of the labelled images, on the CPU."""
    everyones = collector.gather()
    if everyones.feature.shape[1] != 2:  # there were no images
        return [torch.empty(0), torch.empty(0)], everyones.label[:0].cpu(), everyones.index[:0].cpu()
    feature, label, index = everyones.labelled().to("cpu")
    return [feature[:, 0].long(), feature[:, 1]], label, index


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _end(file: str) -> str:
    """The end of a name, which tells files apart; bytes that are no text are question marks."""
    name = Path(file).name.encode(errors="replace").decode()
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]
