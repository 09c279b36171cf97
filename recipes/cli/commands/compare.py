"""``recipes compare``: draws continual runs together, and prints the table of what they reach and cost."""

import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

from recipes.callbacks.reporting.continual_report import FILE
from recipes.cli.commands.arguments import parsed
from recipes.evaluation.continual import MEASURES, forgetting_by_task, mean_over_tasks
from recipes.evaluation.tables import per_cent, versions
from recipes.plots.base import colour, new_figure, shortened
from recipes.plots.continual import VIEWS, grouped_bars, tasks_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 80
_WIDEST = 30  # letters of a name in the table
_DPI = 120
_NAME = 40  # letters of a name in a picture
_COLUMNS = {  # of the table, in its order
    "average_accuracy": "avg.\nacc.",
    "average_incremental_accuracy": "avg.\nincr.",
    "learning_accuracy": "learn-\ning",
    "backward_transfer": "\nBWT",
    "forward_transfer": "\nFWT",
    "forgetting": "forget-\nting",
}
_OF_ONE_RUN = ("seed_everything", "ckpt_path", "name", "runs")  # of its configuration; what else differs is a setting


class Run(NamedTuple):
    """A run that was given.

    Attributes:
        directory: of the run.
        report: what its ``continual.json`` holds.
        settings: its configuration as text, but for the seed.
    """

    directory: Path
    report: dict[str, Any]
    settings: str


class Group(NamedTuple):
    """Runs that differ in their seed alone, or a single run.

    Attributes:
        name: that no other group has.
        runs: at least one.
    """

    name: str
    runs: list[Run]

    @property
    def matrices(self) -> list[Tensor]:
        """R of each run, of the view that its scenario is about: float64 [T+1, T]."""
        return [_matrix(run.report["matrix"][run.report["view"]]) for run in self.runs]

    @property
    def scenario(self) -> str:
        """That of all runs."""
        return self.runs[0].report["scenario"]

    def of_each(self, number: Callable[[Tensor], Any]) -> Tensor:
        """What a function makes of the matrix of each run: float64 [runs, ...]."""
        return torch.stack([torch.as_tensor(number(matrix), dtype=torch.float64) for matrix in self.matrices])

    def costs(self, name: str) -> Tensor:
        """A cost of each run, float64 [runs]: ``minutes`` of training, ``megabytes``, ``flops`` per image."""
        return torch.tensor([_cost(run.report["cost"], name) for run in self.runs], dtype=torch.float64)


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: such as ["runs/lwf-split-digits", "runs/finetuning-split-digits", "--output", "comparison"].

    Raises:
        ValueError: if an argument is wrong, a run is not that of a continual recipe, or the runs have learned different
            numbers of tasks.
        FileNotFoundError: if there is no such run.
    """
    parser = _parser()
    with parsed(parser, args) as options:
        _compare(options)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="recipes compare",
        description="Draws continual runs together, and prints the table of what they reach and cost.",
        exit_on_error=False,
    )
    about = "directories of runs, or of several runs, the newest of which is taken; runs that differ in their seed "
    about += "alone are averaged"
    parser.add_argument("runs", type=str, nargs="+", help=about)
    parser.add_argument("--output", type=str, default="comparison", help="folder for pictures and comparison.json")
    return parser


def _compare(options: Namespace) -> None:
    groups = grouped({run.directory.resolve(): run for run in map(read_run, options.runs)}.values())
    learned = {group.name: group.runs[0].report["tasks_learned"] for group in groups}
    if len(set(learned.values())) > 1:
        listed = ", ".join(f"{name} {number}" for name, number in learned.items())
        raise ValueError(
            f"the runs have learned different numbers of tasks ({listed}): compare runs of as many tasks, each to its "
            "end"
        )
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "comparison.json").write_text(json.dumps(_report(groups), indent=1) + "\n")
    pictures = {"accuracy-over-tasks": accuracy_curves(groups), "cost": cost_bars(groups)}
    if min(learned.values()) > 1:
        pictures |= {"forgetting": forgetting_bars(groups), "stability-plasticity": plane(groups)}
    for name, figure in pictures.items():
        figure.savefig(output / f"{name}.png", dpi=_DPI)
    console = Console(width=_WIDTH, highlight=False, markup=False)
    console.print(table(groups))
    if different := _differences(groups):
        console.print(f"The runs differ in {' and '.join(different)}.")
    console.print(f"Pictures and all numbers are in {output}.", soft_wrap=True)


# Reading


def read_run(path: str) -> Run:
    """Reads what a run left behind.

    Args:
        path: directory of a run, or of several, whose names are times: then the newest that has a report is taken.

    Raises:
        FileNotFoundError: if there is no such directory.
        ValueError: if it has no report of a continual recipe.
    """
    given = Path(path)
    if not given.is_dir():
        raise FileNotFoundError(f"there is no run {path}: give the directory of a run, or of several runs")
    found = [given / FILE, *sorted(given.glob(f"*/{FILE}"), reverse=True)]
    file = next((file for file in found if file.is_file()), None)
    if file is None:
        raise ValueError(
            f"{path} has no {FILE}: it is not the run of a continual recipe, or the run has not come to its end"
        )
    config = file.parent / "config.yaml"
    settings = yaml.safe_load(config.read_text()) if config.is_file() else {}
    settings = {name: value for name, value in settings.items() if name not in _OF_ONE_RUN}
    settings.get("trainer", {}).pop("logger", None)  # has the directory of the run
    return Run(file.parent, json.loads(file.read_text()), json.dumps(settings, sort_keys=True, default=str))


def grouped(runs: Sequence[Run] | Any) -> list[Group]:
    """Puts runs together that have the same name and settings and different seeds, in the order given."""
    alike: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        alike.setdefault((_name(run), run.settings, run.report["recipe"]), []).append(run)
    parts = []
    for group in alike.values():
        seeds = {run.report["protocol"]["seed"] for run in group}
        parts += [group] if len(seeds) == len(group) else [[run] for run in group]
    names = [_name(group[0]) for group in parts]
    return [
        Group(name if names.count(name) == 1 else f"{name}/{group[0].directory.name}", group)
        for name, group in zip(names, parts)
    ]


def _name(run: Run) -> str:
    return run.directory.resolve().parent.name


def _matrix(rows: Sequence[Sequence[float | None]]) -> Tensor:
    return torch.tensor([[math.nan if x is None else x for x in row] for row in rows], dtype=torch.float64)


def _cost(cost: Mapping[str, Any], name: str) -> float:
    if name == "minutes":
        return sum(cost["seconds"]) / 60
    if name == "megabytes":
        return (cost["bytes"]["parameters"] + cost["bytes"]["buffers"]) / 1e6
    flops = cost["flops_per_image"]
    return math.nan if not flops or None in flops else sum(flops) / len(flops)


def _differences(groups: Sequence[Group]) -> list[str]:
    """What the runs should have in common to be compared, and have not."""
    reports = [run.report for group in groups for run in group.runs]
    common: dict[str, Callable[[dict[str, Any]], Any]] = {
        "data": lambda report: report["data"],
        "scenario": lambda report: report["scenario"],
        "the classes of the tasks": lambda report: report["tasks"],
        "the images they are measured on": lambda report: report["protocol"]["split"],
        "encoder": lambda report: report["encoder"],
    }
    return [name for name, of in common.items() if any(of(report) != of(reports[0]) for report in reports)]


# Telling


def _spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation over runs [runs, ...]; of one run the deviation is 0."""
    return values.mean(0), values.std(0, correction=min(1, len(values) - 1))


def _report(groups: Sequence[Group]) -> dict[str, Any]:
    def number(value: Tensor) -> float | None:
        return None if value.isnan() else value.item()

    def both(values: Tensor) -> dict[str, float | None]:
        return dict(zip(("mean", "std"), map(number, _spread(values))))

    return {
        "std": "sample standard deviation over the seeds",
        "runs": [
            {
                "name": group.name,
                "recipe": group.runs[0].report["recipe"],
                "scenario": group.scenario,
                "view": group.runs[0].report["view"],
                "seeds": [run.report["protocol"]["seed"] for run in group.runs],
                "directories": [str(run.directory) for run in group.runs],
                "measures": {name: both(group.of_each(measure)) for name, measure in MEASURES.items()},
                "mean_after_each_task": [both(column) for column in group.of_each(mean_over_tasks).T],
                "cost": {name: both(group.costs(name)) for name in ("minutes", "megabytes", "flops")},
            }
            for group in groups
        ],
        "versions": versions(),
    }


def table(groups: Sequence[Group]) -> Table:
    """A row for each group, 80 columns wide; below the means of several seeds, their standard deviations."""
    scenarios = {group.scenario for group in groups}
    several = any(len(group.runs) > 1 for group in groups)
    view = VIEWS[groups[0].runs[0].report["view"]]
    asked = f"scenario {groups[0].scenario}, {view}" if len(scenarios) == 1 else "task-aware in the scenario task only"
    lines = [
        f"Accuracies and transfer in %; {asked}.",
        "learning: right after a task; MB: parameters and buffers; min: training.",
        *(["Mean and, below it, standard deviation over the seeds."] if several else []),
    ]
    result = Table(
        title=f"After {groups[0].runs[0].report['tasks_learned']} tasks",
        caption="\n".join(lines),
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=0,  # a space is left between columns
    )
    result.add_column("", overflow="fold")
    if len(scenarios) > 1:
        result.add_column("\nscenario", no_wrap=True)
    for head in (*_COLUMNS.values(), "\nMB", "\nmin"):
        result.add_column(head, justify="right", no_wrap=True)
    for group in groups:
        own = [group.scenario] if len(scenarios) > 1 else []
        seeds = f"\n{len(group.runs)} seeds" if len(group.runs) > 1 else ""
        cells = [_cell(group.of_each(MEASURES[name])) for name in _COLUMNS]
        cells += [f"{group.costs(name).mean():.3g}" for name in ("megabytes", "minutes")]
        name = "\n".join(textwrap.wrap(group.name, _WIDEST - 9 * len(own)))  # a long name breaks at a hyphen
        result.add_row(name + seeds, *own, *cells)
    return result


def _cell(values: Tensor) -> str:
    mean, std = (None if value.isnan() else value.item() for value in _spread(values))
    return per_cent(mean) + (f"\n±{per_cent(std)}" if len(values) > 1 and mean is not None else "")


# Pictures


def accuracy_curves(groups: Sequence[Group]) -> "Figure":
    """Draws the mean accuracy on the tasks learned by then, after each task; a band is the standard deviation."""
    figure = new_figure(8.0, 4.0)
    axes = figure.add_subplot()
    for number, group in enumerate(groups):
        mean, std = (100 * x for x in _spread(group.of_each(mean_over_tasks)))
        after = range(1, len(mean) + 1)
        own = colour(number, len(groups))
        axes.plot(after, mean, color=own, marker="o", markersize=4, label=shortened(group.name, _NAME))
        if len(group.runs) > 1:
            axes.fill_between(after, mean - std, mean + std, color=own, alpha=0.2, lw=0)
    tasks_axis(axes, len(mean))
    axes.set_ylabel("accuracy (%)")
    _legend(figure)
    figure.suptitle("Mean accuracy on the tasks learned", fontsize=11)
    return figure


def forgetting_bars(groups: Sequence[Group]) -> "Figure":
    """Draws by how much the accuracy on each task but the last was better at its best, for each group."""
    spreads = {group.name: _spread(group.of_each(forgetting_by_task)) for group in groups}
    figure = new_figure(9.0, 4.0)
    axes = figure.add_subplot()
    grouped_bars(axes, *({name: both[place] for name, both in spreads.items()} for place in (0, 1)))
    axes.set_xlabel("task")
    axes.set_ylabel("best accuracy − last (points)")
    _legend(figure)
    figure.suptitle("Forgetting of each task", fontsize=11)
    return figure


def plane(groups: Sequence[Group]) -> "Figure":
    """Draws the stability-plasticity plane: accuracy on the old tasks at the end over that right after learning.

    Plasticity is the learning accuracy, and stability the mean accuracy on all tasks but the last, after the last.
    What forgets nothing stands near the diagonal, and what learns well stands on the right.
    """
    figure = new_figure(7.6, 4.4)
    axes = figure.add_subplot()
    for number, group in enumerate(groups):
        (x, dx), (y, dy) = (
            (100 * value for value in _spread(group.of_each(of))) for of in (MEASURES["learning_accuracy"], _old_tasks)
        )
        error: dict[str, Any] = {"xerr": dx.item(), "yerr": dy.item()} if len(group.runs) > 1 else {}
        label = shortened(group.name, _NAME)
        axes.errorbar(
            x.item(), y.item(), **error, marker="o", color=colour(number, len(groups)), ls="", capsize=2, label=label
        )
    axes.plot([0, 100], [0, 100], color="0.6", ls="--", lw=0.8)
    axes.set_xlim(-2, 102)
    axes.set_ylim(-2, 102)
    axes.set_aspect("equal")
    axes.set_xlabel("plasticity: accuracy right after learning (%)")
    axes.set_ylabel("stability: accuracy on old tasks\nafter the last (%)")
    axes.grid(color="0.92")
    axes.set_axisbelow(True)
    _legend(figure)
    figure.suptitle("Stability and plasticity (on the dashed line nothing is forgotten)", fontsize=11)
    return figure


def _old_tasks(matrix: Tensor) -> float:
    learned = len(mean_over_tasks(matrix))
    return matrix[learned, : learned - 1].mean().item()


def cost_bars(groups: Sequence[Group]) -> "Figure":
    """Draws minutes of training, memory, and operations per image of each group."""
    panels = {"minutes": "training (minutes)", "megabytes": "memory (MB)", "flops": "MFLOPs per image of a step"}
    figure = new_figure(9.6, 1.3 + 0.32 * len(groups))
    grid = figure.subplots(1, len(panels), sharey=True)
    for axes, (name, title) in zip(grid, panels.items()):
        spreads = [_spread(group.costs(name) / (1e6 if name == "flops" else 1)) for group in groups]
        for number, (mean, std) in enumerate(spreads):
            if mean.isnan():
                axes.text(0, number, " not known", va="center", fontsize=8, color="0.4")
                continue
            error = std.item() if std > 0 else None
            axes.barh(number, mean.item(), xerr=error, color=colour(number, len(groups)), height=0.7, ecolor="0.3")
        axes.set_xlabel(title, fontsize=9)
        axes.set_xlim(left=0)
        axes.locator_params(axis="x", nbins=5)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    names = [shortened(group.name, _NAME) for group in groups]
    grid[0].set_yticks(range(len(groups)), names, fontsize=8, parse_math=False)
    grid[0].set_ylim(len(groups) - 0.4, -0.6)
    figure.suptitle("Cost", fontsize=11)
    return figure


def _legend(figure: "Figure") -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
