"""Figures of a student and its teacher: softened probabilities, agreement and calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recipes.evaluation.calibration import (
    BINS,
    NETWORKS,
    TEMPERATURES,
    Predictions,
    Reliability,
    calibration_error,
    entropy,
    reliability,
)
from recipes.evaluation.classification import confusion
from recipes.plots.base import display_width, new_figure, shortened, show
from recipes.plots.classes import confusion_matrix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_IMAGES = 6
_CLASSES = 10  # bars of an image
_NAME = 22  # letters of a name
_LINES = 100  # classes, up to which lines between them leave room for colour
_BAR, _RIGHT, _PALE, _GAP = "#4c78a8", "#1a9850", "#a6c8e4", "#d73027"


def spread(surprise: Tensor, images: int = _IMAGES) -> Tensor:
    """Chooses images at equal distances in the order of a number [N], from the lowest to the highest: [images]."""
    order = surprise.argsort(stable=True)
    return order[torch.linspace(0, len(order) - 1, min(images, len(order))).round().long()]


def softened(images: Tensor, logits: Tensor, label: Tensor, names: Sequence[str], of: int) -> Figure:
    """Draws a teacher's probabilities at several temperatures; if there are many classes, the most probable ten.

    Args:
        images: [B, C, H, W], uint8 or float in [0, 1].
        logits: the teacher's logits [B, classes].
        label: classes of the images, int64 [B].
        names: names of the classes.
        of: number of images that they were chosen from.
    """
    classes = len(names)
    shown = min(classes, _CLASSES)
    height = max(1.3, 0.15 * shown + 0.45)
    room = 0.08 * max(display_width(shortened(name, _NAME)) for name in names)  # inches beside the bars
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


def agreement(test: Predictions, names: Sequence[str]) -> Figure:
    """Draws the joint counts of the teacher's (rows) and the student's (columns) predicted classes.

    Args:
        test: logits of teacher and student.
        names: names of the classes.
    """
    matrix = confusion(test.teacher.argmax(1), test.student.argmax(1), len(names))
    figure = confusion_matrix(matrix, names)
    axes, bar = figure.axes
    axes.set_ylabel("teacher's prediction")
    axes.set_xlabel("student's prediction")
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


def calibration(test: Predictions, temperatures: Mapping[str, float]) -> Figure:
    """Draws accuracy by confidence for teacher and student, before and after temperature scaling.

    Args:
        test: logits of teacher and student.
        temperatures: temperatures of ``teacher`` and ``student``. If empty, draws only the unscaled probabilities.
    """
    columns = 2 if temperatures else 1
    figure = new_figure(0.6 + 3.6 * columns, 7.8)
    grid = figure.subplots(2, columns, squeeze=False, sharex=True, sharey=True)
    for row, name in zip(grid, NETWORKS):
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
