"""Runs side by side: curves, bars of final measures and of cost, and the figures of continual runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from recipes.evaluation.comparison import Column, Group
from recipes.evaluation.continual import MEASURES, forgetting_by_task, mean_over_tasks
from recipes.evaluation.curves import curve
from recipes.evaluation.tables import mean_and_std
from recipes.plots.base import colour, display_width, new_figure
from recipes.plots.continual import forgetting_figure, tasks_axis

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = ("train/loss", "val/loss", "val/accuracy", "val/knn", "val/linear")
_NAME = 40  # letters of a name
_POINTS = 200  # of a curve; more are averaged
_PER_ROW = 4  # panels of bars


def curves(groups: Sequence[Group], names: Sequence[str], epochs: bool) -> Figure | None:
    """Draws logged metrics over training, a panel for each; a band is the standard deviation over the seeds.

    Args:
        groups: a line for each.
        names: of the metrics; those with fewer than two lines, or one of a single group, are left out.
        epochs: whether x is in epochs; otherwise in optimiser steps.

    Returns:
        None if nothing is left to be drawn.
    """
    lines = {
        name: {place: line for place, g in enumerate(groups) if (line := curve(g, name, epochs))} for name in names
    }
    lines = {name: by_group for name, by_group in lines.items() if len(by_group) >= min(2, len(groups))}
    if not lines:
        return None
    columns = min(2, len(lines))
    rows = -(-len(lines) // columns)
    figure = new_figure(4.2 * columns + 2.6, 2.9 * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    handles: dict[int, Any] = {}
    for axes, (name, by_group) in zip(grid, lines.items()):
        factor = 1 if name.endswith("loss") else 100
        for place, line in by_group.items():
            x, mean, std = (_thinned(values) for values in line)
            own = colour(place, len(groups))
            (handles[place],) = axes.plot(x, factor * mean, color=own, lw=1.4)
            if len(groups[place].runs) > 1:
                axes.fill_between(x, factor * (mean - std), factor * (mean + std), color=own, alpha=0.2, lw=0)
        axes.set_title(name if factor == 1 else f"{name} (%)", fontsize=10)
        axes.set_xlabel("epoch" if epochs else "step")
        _plain(axes)
    for axes in grid[len(lines) :]:
        axes.set_axis_off()
    _legend(figure, [handles[place] for place in sorted(handles)], [groups[place].name for place in sorted(handles)])
    return figure


def measure_bars(groups: Sequence[Group], columns: Sequence[Column], title: str) -> Figure:
    """Draws measures or costs as bars, a panel for each and a bar for each group, with the spread over the seeds.

    Args:
        groups: the bars, from the top.
        columns: the panels.
        title: above all.
    """
    from matplotlib.ticker import EngFormatter

    across = min(_PER_ROW, len(columns))
    down = -(-len(columns) // across)
    names = [_short(group.name) for group in groups]
    room = 0.075 * max(map(display_width, names))
    figure = new_figure(0.6 + room + 2.1 * across, 0.5 + down * (0.75 + 0.26 * len(groups)))
    grid = figure.subplots(down, across, squeeze=False, sharey=True)
    for axes, column in zip(grid.flatten(), columns):
        factor = 100 if column.unit else 1e-6 if column.name == "flops" else 1
        for place, group in enumerate(groups):
            values = group.values(column.name)
            if not len(values) or values.isnan().all():
                axes.text(0, place, " not known", va="center", fontsize=8, color="0.4")
                continue
            mean, std = (factor * float(value) for value in mean_and_std(values))
            error: dict[str, Any] = {"xerr": std} if len(values) > 1 else {}
            axes.barh(place, mean, 0.7, color=colour(place, len(groups)), ecolor="0.3", capsize=2, **error)
        axes.set_xlabel(f"{column.title}{' (%)' if column.unit else ''}", fontsize=8, parse_math=False)
        axes.tick_params(labelsize=8)
        axes.locator_params(axis="x", nbins=4)
        if column.name in ("parameters", "steps", "images_per_second"):
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    for axes in grid.flatten()[len(columns) :]:
        axes.set_axis_off()
    for row in grid:
        row[0].set_yticks(range(len(groups)), names, fontsize=8, parse_math=False)
    grid[0][0].set_ylim(len(groups) - 0.4, -0.6)
    figure.suptitle(title, fontsize=11)
    return figure


def accuracy_curves(groups: Sequence[Group]) -> Figure:
    """Draws the mean accuracy on the tasks learned by then, after each task; a band is the standard deviation.

    Args:
        groups: of which the continual ones are drawn, in the colours that they have in the other figures.
    """
    figure = new_figure(8.0, 4.0)
    axes = figure.add_subplot()
    for group, own in _continual(groups):
        mean, std = (100 * x for x in mean_and_std(group.of_each(mean_over_tasks)))
        after = range(1, len(mean) + 1)
        axes.plot(after, mean, color=own, marker="o", markersize=4, label=group.name)
        if len(group.runs) > 1:
            axes.fill_between(after, mean - std, mean + std, color=own, alpha=0.2, lw=0)
    tasks_axis(axes, len(mean))
    axes.set_ylabel("accuracy (%)")
    _legend(figure)
    figure.suptitle("Mean accuracy on the tasks learned", fontsize=11)
    return figure


def forgetting_bars(groups: Sequence[Group]) -> Figure:
    """Draws by how much the accuracy on each task but the last was better at its best, for each continual group."""
    spreads = {group.name: mean_and_std(group.of_each(forgetting_by_task)) for group, _ in _continual(groups)}
    means, errors = ({name: both[place] for name, both in spreads.items()} for place in (0, 1))
    figure = forgetting_figure(means, errors=errors, colours={group.name: own for group, own in _continual(groups)})
    _legend(figure)
    return figure


def plane(groups: Sequence[Group]) -> Figure:
    """Draws the stability-plasticity plane: accuracy on the old tasks at the end over that right after learning.

    Plasticity is the learning accuracy, and stability the mean accuracy on all tasks but the last, after the last. A
    group that forgets nothing is near the diagonal, and a group that learns well is on the right.

    Args:
        groups: of which the continual ones are drawn.
    """
    figure = new_figure(7.6, 4.4)
    axes = figure.add_subplot()
    for group, own in _continual(groups):
        (x, dx), (y, dy) = (
            (100 * value for value in mean_and_std(group.of_each(of)))
            for of in (MEASURES["learning_accuracy"], _old_tasks)
        )
        error: dict[str, Any] = {"xerr": dx.item(), "yerr": dy.item()} if len(group.runs) > 1 else {}
        axes.errorbar(x.item(), y.item(), **error, marker="o", color=own, ls="", capsize=2, label=group.name)
    axes.plot([0, 100], [0, 100], color="0.6", ls="--", lw=0.8)
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_aspect("equal")
    axes.set_xlabel("plasticity: right after learning (%)")
    axes.set_ylabel("stability: old tasks at the end (%)")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    _legend(figure)
    figure.suptitle("Stability and plasticity (on the dashed line nothing is forgotten)", fontsize=11)
    return figure


def _continual(groups: Sequence[Group]) -> list[tuple[Group, Any]]:
    """The continual groups, each with its colour."""
    return [(group, colour(place, len(groups))) for place, group in enumerate(groups) if group.is_continual]


def _short(name: str) -> str:
    """A name with dots in its middle, if it is long: runs often differ in their last letters."""
    return name if len(name) <= _NAME else f"{name[: _NAME // 2]}…{name[1 - _NAME // 2 :]}"


def _old_tasks(matrix: Tensor) -> float:
    learned = len(mean_over_tasks(matrix))
    return matrix[learned, : learned - 1].mean().item()


def _thinned(values: Tensor) -> Tensor:
    """At most 200 points, each the mean of neighbouring ones."""
    width = -(-len(values) // _POINTS)
    whole = len(values) // width * width
    return values[:whole].view(-1, width).mean(1) if width > 1 else values


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", color="0.92")
    axes.set_axisbelow(True)
    axes.locator_params(axis="x", nbins=6, integer=True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _legend(figure: Figure, handles: Sequence[Any] | None = None, labels: Sequence[str] | None = None) -> None:
    if handles is None or labels is None:
        handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, map(_short, labels), loc="outside right center", frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
