"""``recipes compare``: one table and figures of any finished runs, averaged over their seeds."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from rich.console import Console

from recipes.cli.commands.arguments import parsed
from recipes.evaluation import comparison
from recipes.evaluation.comparison import COSTS, Column, Group
from recipes.evaluation.conditions import checkpoints, incomparable
from recipes.evaluation.curves import over_epochs
from recipes.evaluation.runs import find_runs
from recipes.evaluation.tables import WIDTH
from recipes.plots.comparison_tables import continual_table, files, tables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 120
_MOST_BARS = 12  # panels of one picture


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: such as ["runs/simclr-digits", "runs/byol-digits", "--out", "comparison"].

    Raises:
        ValueError: if an argument is wrong, or there is no finished run.
        FileNotFoundError: if a directory does not exist.
    """
    parser = _parser()
    with parsed(parser, args) as options:
        _compare(options)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="recipes compare",
        description="Compares finished runs of any recipes in one table with figures, averaged over the seeds.",
        exit_on_error=False,
    )
    about = "run directories, or folders of runs such as runs or runs/simclr-digits; runs that differ in their seed "
    about += "alone are averaged"
    parser.add_argument("runs", type=str, nargs="+", help=about)
    about = "folder for pictures and for comparison.csv, .json, .md and .tex"
    parser.add_argument("--output", "--out", type=str, default="comparison", help=about)
    return parser


def _compare(options: Namespace) -> None:
    runs, notes = find_runs(options.runs)
    groups = comparison.grouped(runs)
    continual, note = _continual(groups)
    notes += [checkpoints(groups), *incomparable(groups), *note]
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "comparison.json").write_text(json.dumps(comparison.report(groups, notes), indent=1) + "\n")
    for name, text in files(groups).items():
        (output / name).write_text(text, encoding="utf-8", newline="")
    for name, figure in _pictures(groups, continual).items():
        figure.savefig(output / f"{name}.png", dpi=_DPI)
    width = max(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH
    console = Console(width=width, highlight=False, markup=False)
    if continual:
        console.print(continual_table(continual))
    for table in tables(groups, width, continual):
        console.print(table)
    for line in notes:
        console.print(line, soft_wrap=True)
    console.print(f"Pictures and all numbers are in {output}.", soft_wrap=True)


def _continual(groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """The groups of continual runs, if they have learned equally many tasks; otherwise none, and a line on that."""
    found = [group for group in groups if group.is_continual]
    learned = {run.reports["continual"]["tasks_learned"] for group in found for run in group.runs}
    if len(learned) < 2:
        return found, []
    return [], ["There is no table of forgetting, because the runs have learned different numbers of tasks."]


def _pictures(groups: Sequence[Group], continual: Sequence[Group]) -> "dict[str, Figure]":
    from recipes.plots import comparison as plots

    columns = comparison.shared(groups)
    final = [column for column in columns if column.name.startswith("test/")] or [
        column for column in columns if column.name not in COSTS
    ]
    costs = [column for column in columns if column.name in COSTS]
    found: dict[str, Figure | None] = {
        "curves": plots.curves(groups, plots.CURVES, over_epochs(groups)),
        "measures": _bars(groups, final[:_MOST_BARS], "Final measures"),
        "cost": _bars(groups, costs, "Cost"),
    }
    if continual:
        found["accuracy-over-tasks"] = plots.accuracy_curves(groups)
        if continual[0].continual["tasks_learned"] > 1:
            found["forgetting"] = plots.forgetting_bars(groups)
            found["stability-plasticity"] = plots.plane(groups)
    return {name: figure for name, figure in found.items() if figure is not None}


def _bars(groups: Sequence[Group], columns: Sequence[Column], title: str) -> "Figure | None":
    from recipes.plots.comparison import measure_bars

    return measure_bars(groups, columns, title) if columns else None
