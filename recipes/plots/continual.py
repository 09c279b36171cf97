"""How a continual run is shown: figures, and the table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from torch import Tensor

from recipes.evaluation.continual import MEASURES, forgetting_by_task, mean_over_tasks, tasks_learned
from recipes.evaluation.tables import new_table, per_cent
from recipes.plots.base import colour, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VIEWS = {"aware": "task-aware", "agnostic": "task-agnostic"}
_NAMES = 34  # letters of the classes of a task
_NUMBERED = 12  # tasks, up to which cells have room for their number, and lines for a name
_DARK = 0.55  # accuracy from which its number is white


def table(report: Mapping[str, Any]) -> Table:
    """The accuracies after the last task and what follows from the matrices, 80 columns wide.

    Args:
        report: what ``continual.json`` holds.
    """
    learned = report["tasks_learned"]
    views = list(VIEWS) if report["matrix"]["aware"] != report["matrix"]["agnostic"] else [report["view"]]
    last = {view: report["matrix"][view][learned] for view in views}
    asks = f": {VIEWS[report['view']]}" if len(views) > 1 else ""
    which = "the last task" if learned == len(report["tasks"]) else f"{learned} of {len(report['tasks'])} tasks"
    images = {"test": "test", "val": "validation"}[report["protocol"]["split"]]
    result = new_table(
        title=f"{report['recipe']} on {report['data']}: accuracy after {which} (%)",
        caption=f"On the {images} images; the scenario is {report['scenario']}{asks}.{_without_images(last)}",
    )
    result.add_column("", no_wrap=True, overflow="ellipsis")
    for view in views:
        result.add_column(VIEWS[view] if len(views) > 1 else "accuracy", justify="right", no_wrap=True)
    for task, name in enumerate(task_names(report["tasks"])[:learned]):
        cells = (per_cent(last[view][task]) for view in views)
        result.add_row(f"task {shortened(name, _NAMES)}", *cells, end_section=task + 1 == learned)
    for measure in MEASURES:
        values = [report["measures"][view][measure] for view in views]
        if any(value is not None for value in values):
            result.add_row(measure.replace("_", " "), *map(per_cent, values))
    return result


def _without_images(last: Mapping[str, Sequence[float | None]]) -> str:
    """Names the tasks that were not measured after the last one, which leaves averages over all tasks without value."""
    rows = zip(*last.values(), strict=True)
    missing = [str(number) for number, row in enumerate(rows, 1) if all(value is None for value in row)]
    return f" There are no images of task {', '.join(missing)}, and so no averages." if missing else ""


def task_names(tasks: Sequence[Sequence[str]]) -> list[str]:
    """The number of each task, from 1, and its classes, unless all tasks have the same.

    Args:
        tasks: the names of the classes of each.
    """
    if len(tasks) > 1 and all(classes == tasks[0] for classes in tasks):
        return [str(task + 1) for task in range(len(tasks))]
    return [f"{task + 1}: {', '.join(classes)}" for task, classes in enumerate(tasks)]


def heat_map(matrices: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draws the accuracy on each task (columns) before training and after each task (rows).

    Args:
        matrices: R by view, [T+1, T].
        names: of the tasks.
    """
    from matplotlib import colormaps

    views = _different(matrices)
    tasks = len(names)
    side = min(max(2.6, 0.5 * tasks), 7.0)
    figure = new_figure(1.9 + (side + 0.5) * len(views), side + 1.7)
    grid = figure.subplots(1, len(views), squeeze=False, sharey=True)[0]
    cmap = colormaps["Blues"].with_extremes(bad="0.85")
    step = -(-tasks // 25)
    for axes, (title, matrix) in zip(grid, views.items()):
        drawn = axes.imshow(100 * matrix.numpy(), cmap=cmap, vmin=0, vmax=100, interpolation="nearest")
        if tasks <= _NUMBERED:
            for (i, j), value in np.ndenumerate(matrix.numpy()):
                dark = "white" if value > _DARK else "0.15"
                text = "" if np.isnan(value) else f"{100 * value:.0f}"
                axes.text(j, i, text, ha="center", va="center", color=dark, fontsize=8)
        labels = [shortened(name, 16) for name in names] if tasks <= _NUMBERED else range(1, tasks + 1, step)
        turned: dict[str, Any] = {"rotation": 40, "ha": "right"} if tasks <= _NUMBERED else {}
        axes.set_xticks(range(0, tasks, step), labels, fontsize=8, parse_math=False, **turned)
        axes.set_yticks(range(0, tasks + 1, step), ["before", *range(step, tasks + 1, step)], fontsize=8)
        axes.set_xlabel("accuracy on task")
        if len(views) > 1:
            axes.set_title(title, fontsize=10)
    grid[0].set_ylabel("after task")
    figure.colorbar(drawn, ax=list(grid), shrink=0.8, aspect=30, pad=0.02).set_label("accuracy (%)")
    figure.suptitle("Accuracy on each task after each task", fontsize=11)
    return figure


def over_tasks(matrices: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draws how the accuracy on each task changes from when it is learned, and the mean over those learned by then.

    Args:
        matrices: R by view, [T+1, T].
        names: of the tasks.
    """
    from matplotlib import colormaps

    views = _different(matrices)
    learned = tasks_learned(matrices["aware"])
    figure = new_figure(2.2 + 3.6 * len(views), 3.6)
    grid = figure.subplots(1, len(views), squeeze=False, sharey=True)[0]
    for axes, (title, matrix) in zip(grid, views.items()):
        for task in (task for task in range(learned) if not matrix[1:, task].isnan().all()):
            shade = colormaps["viridis"](0.92 * task / max(1, learned - 1))
            after = np.arange(task + 1, learned + 1)
            label = shortened(names[task], 18) if learned <= _NUMBERED else None
            axes.plot(after, 100 * matrix[after, task], color=shade, marker="o", markersize=3, lw=1, label=label)
        mean = mean_over_tasks(matrix)
        if not mean.isnan().all():
            axes.plot(range(1, learned + 1), 100 * mean, color="black", lw=2.2, label="mean")
        tasks_axis(axes, learned)
        if len(views) > 1:
            axes.set_title(title, fontsize=10)
    grid[0].set_ylabel("accuracy (%)")
    text: dict[str, Any] = {"frameon": False, "fontsize": 8, "title_fontsize": 8}
    if learned <= _NUMBERED:
        text["title"] = "on task"
    legend = figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right center", **text)
    for name in legend.get_texts():
        name.set_parse_math(False)
    figure.suptitle("Accuracy on the tasks learned", fontsize=11)
    return figure


def forgetting_bars(matrices: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draws by how much the accuracy on each task but the last was better at its best.

    Args:
        matrices: R by view, [T+1, T], with two tasks learned or more.
        names: of the tasks.
    """
    bars = {title: forgetting_by_task(matrix) for title, matrix in _different(matrices).items()}
    return forgetting_figure(bars, names)


def forgetting_figure(
    bars: Mapping[str, Tensor],
    names: Sequence[str] = (),
    errors: Mapping[str, Tensor] | None = None,
    colours: Mapping[str, Any] | None = None,
) -> Figure:
    """Draws the forgetting of each task but the last as bars.

    Args:
        bars: forgetting of each task [k-1], in [-1, 1], by the name of the bars.
        names: of the tasks; without them, tasks are numbered.
        errors: standard deviations of the bars, where they are known.
        colours: of the bars; by default one after the other.
    """
    tasks = len(next(iter(bars.values())))
    figure = new_figure(6.4 if names else 9.0, 3.4 if names else 4.0)
    axes = figure.add_subplot()
    grouped_bars(axes, bars, errors, colours)
    if names and tasks <= _NUMBERED:
        axes.set_xticks(range(tasks), [shortened(name, 16) for name in names[:tasks]], fontsize=8, parse_math=False)
    axes.set_xlabel("task")
    axes.set_ylabel("best accuracy − last (points)")
    if len(bars) > 1 and names:
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"Forgetting after {tasks + 1} tasks", fontsize=11)
    return figure


def grouped_bars(
    axes: Axes,
    bars: Mapping[str, Tensor],
    errors: Mapping[str, Tensor] | None = None,
    colours: Mapping[str, Any] | None = None,
) -> None:
    """Draws numbers [N], in [-1, 1], as bars in per cent: a group for each, with a bar of each name.

    Args:
        axes: to draw on.
        bars: numbers by name.
        errors: their standard deviations, where they are known.
        colours: of the bars; by default one after the other.
    """
    width = 0.8 / len(bars)
    for number, (name, values) in enumerate(bars.items()):
        places = np.arange(len(values)) + (number - (len(bars) - 1) / 2) * width
        error = None if errors is None or not errors[name].any() else 100 * errors[name].numpy()
        own = colours[name] if colours else colour(number, len(bars))
        axes.bar(places, 100 * values.numpy(), width, yerr=error, color=own, label=name, ecolor="0.3")
    axes.axhline(0, color="black", lw=0.8)
    tasks = len(next(iter(bars.values())))
    step = -(-tasks // 25)
    axes.set_xticks(range(0, tasks, step), [str(task + 1) for task in range(0, tasks, step)])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def tasks_axis(axes: Axes, tasks: int) -> None:
    """Makes the axes those of accuracies in per cent after so many tasks."""
    axes.set_xticks(range(1, tasks + 1, -(-tasks // _NUMBERED)))
    axes.set_xlim(0.8, tasks + 0.2)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("after task")
    axes.grid(axis="y", color="0.92")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _different(matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices by the name of their view; one, where both are the same."""
    if matrices["aware"].nan_to_num(-1).equal(matrices["agnostic"].nan_to_num(-1)):
        return {"accuracy": matrices["aware"]}
    return {VIEWS[view]: matrix for view, matrix in matrices.items()}
