"""How a run trains: its loss and its views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from recipes.plots.base import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 200  # points of the curve of the loss


def loss_curve(steps: Sequence[int], losses: Sequence[float], knn: Sequence[tuple[int, float]] = ()) -> Figure:
    """Draws the loss, as mean and range of bins of steps, and the kNN accuracy.

    Args:
        steps: of the optimiser, [N], N > 0.
        losses: [N].
        knn: pairs of a step and an accuracy in [0, 1].
    """
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    size = max(1, len(steps) // _BINS)
    step = torch.tensor(steps, dtype=torch.float64).split(size)
    loss = torch.tensor(losses, dtype=torch.float64).split(size)
    x = [part.mean().item() for part in step]
    label = "training loss" if size == 1 else f"training loss, mean and range of {size} steps"
    if size > 1:
        low, high = [part.min().item() for part in loss], [part.max().item() for part in loss]
        axes.fill_between(x, low, high, color="C0", alpha=0.2, linewidth=0)
    lines = axes.plot(x, [part.mean().item() for part in loss], color="C0", label=label, marker=_marker(x))
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    title = "Training loss"
    if knn:
        other = axes.twinx()
        x = [float(step) for step, _ in knn]
        values = [100 * value for _, value in knn]
        lines += other.plot(x, values, color="C1", label="val/knn", marker="o", markersize=3)
        other.set_ylabel("kNN accuracy on validation images (%)")
        title = "Training loss and kNN accuracy"
    axes.set_title(title)
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _marker(x: Sequence[float]) -> str:
    return "o" if len(x) == 1 else ""  # a line through one point cannot be seen
