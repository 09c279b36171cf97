"""How the mistakes of a classifier are shown: the confusion matrix, and images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from datamodules.sources.names import printable
from recipes.evaluation.classification import Mistake
from recipes.plots.base import display_width, new_figure, shortened, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DARK = 0.35  # share of a class from which the number of images is white
_COUNTED = 20  # classes, up to which cells have room for their number of images
_NAMED = 100  # classes, up to which every one is named
_COLUMNS = 6  # of the sheet of mistakes
_NAME = 22  # letters of a name


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
    room = 0.08 * max(map(display_width, labels))  # inches beside and below the matrix
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
    if max(map(display_width, labels)) > 3:
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
        probabilities: whether confidences are probabilities; scores if not.
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
        confidence = f"{100 * mistake.confidence:.0f} %" if probabilities else f"{mistake.confidence:.2f}"
        caption = [true, f"→ {predicted}  {confidence}"]
        caption += [_end(mistake.file)] if mistake.file else []
        axes.set_xlabel("\n".join(caption), fontsize=8, parse_math=False)
    number = "probability" if probabilities else "score"
    figure.suptitle(f"{title}\ntrue class → predicted class and its {number}", fontsize=11)
    return figure


def _end(file: str) -> str:
    """The end of a name, which tells files apart."""
    name = printable(Path(file).name)
    return name if len(name) <= _NAME else "…" + name[1 - _NAME :]
