"""The tables of ``recipes compare``: for the terminal, and as CSV, Markdown and LaTeX."""

import textwrap
from collections.abc import Sequence

from rich.table import Table

from recipes.evaluation.comparison import Column, Group, differences, shared
from recipes.evaluation.continual import MEASURES
from recipes.evaluation.tables import mean_and_std, new_table
from recipes.evaluation.text_tables import comma_separated, latex, markdown
from recipes.plots.continual import VIEWS

_WIDEST = 30  # letters of a name in a line
_HEAD = 11  # letters of a title in a line
_ROOM = 2  # columns of a terminal between two columns of a table
_KINDS = ("test/", "val/", "train/")
_CONTINUAL = {  # columns of the table of continual runs, in their order
    "average_accuracy": "avg.\nacc.",
    "average_incremental_accuracy": "avg.\nincr.",
    "learning_accuracy": "learn-\ning",
    "backward_transfer": "\nBWT",
    "forward_transfer": "\nFWT",
    "forgetting": "forget-\nting",
}


def tables(groups: Sequence[Group], width: int, continual: Sequence[Group] = ()) -> list[Table]:
    """Makes the table for the terminal: a row for each group, cut into as many parts as the width asks for.

    Args:
        groups: the rows; a part leaves out those that have nothing in its columns.
        width: of the terminal.
        continual: groups whose measures of forgetting ``continual_table`` has.
    """
    leave_out = {f"test/{name}" for name in MEASURES} if continual else set()
    leave_out |= {"minutes", "megabytes"} if len(continual) == len(groups) else set()
    columns = [column for column in shared(groups) if column.name not in leave_out]
    found = [_table(groups, part) for part in _in_width(groups, columns, width)]
    if found:
        several = any(len(group.runs) > 1 for group in groups)
        found[-1].caption = "Accuracies in %." + " Below a mean: standard deviation over the seeds." * several
    if any(different := differences(groups)):
        result = new_table(title="Differences of the configurations", show_header=False)
        result.add_column("", overflow="fold")
        result.add_column("", overflow="fold", ratio=1)
        for group, text in zip(groups, different):
            result.add_row(_wrapped(group.name), text or "–")
        found.append(result)
    return found


def _head(column: Column) -> str:
    """The kind of the images and the title, in short lines."""
    words = column.title.replace("_per_class", "/class").replace("_", " ")
    return "\n".join(line for part in words.split("/", words.startswith(_KINDS)) for line in textwrap.wrap(part, _HEAD))


def _cells(group: Group, column: Column) -> str:
    mean, std = column.cell(group.values(column.name))
    return f"{mean}\n±{std}" if std else mean


def _in_width(groups: Sequence[Group], columns: Sequence[Column], width: int) -> list[list[Column]]:
    """Cuts columns into parts that fit."""
    names = max(len(line) for group in groups for line in _wrapped(group.name).splitlines())
    parts: list[list[Column]] = []
    left = 0
    for column in columns:
        texts = [_head(column), *(_cells(group, column) for group in groups)]
        wide = _ROOM + max(len(line) for text in texts for line in text.splitlines())
        if not parts or wide > left:
            parts.append([])
            left = width - names - _ROOM
        parts[-1].append(column)
        left -= wide
    return parts


def _table(groups: Sequence[Group], columns: Sequence[Column]) -> Table:
    rows = [group for group in groups if any(len(group.values(column.name)) for column in columns)]
    result = new_table()
    result.add_column("", overflow="fold")
    for column in columns:
        result.add_column(_head(column), justify="right", no_wrap=True)
    for group in rows:
        seeds = f"\n{len(group.runs)} seeds" if len(group.runs) > 1 else ""
        result.add_row(_wrapped(group.name) + seeds, *(_cells(group, column) for column in columns))
    return result


def _wrapped(name: str, widest: int = _WIDEST) -> str:
    return "\n".join(textwrap.wrap(name, widest))  # a long name breaks at a hyphen


def continual_table(groups: Sequence[Group]) -> Table:
    """A row for each group of continual runs, 80 columns wide."""
    scenarios = {group.continual["scenario"] for group in groups}
    first = groups[0].continual
    asked = f"scenario {first['scenario']}, {VIEWS[first['view']]}"
    asked = asked if len(scenarios) == 1 else "task-aware in the scenario task only"
    several = any(len(group.runs) > 1 for group in groups)
    lines = [
        f"Accuracies and transfer in %; {asked}.",
        "learning: right after a task; MB: all that is stored; min: training.",
        *(["Mean and, below it, standard deviation over the seeds."] if several else []),
    ]
    result = new_table(
        title=f"After {first['tasks_learned']} tasks", caption="\n".join(lines), collapse_padding=False, padding=0
    )
    result.add_column("", overflow="fold")
    if len(scenarios) > 1:
        result.add_column("\nscenario", no_wrap=True)
    for head in (*_CONTINUAL.values(), "\nMB", "\nmin"):
        result.add_column(head, justify="right", no_wrap=True)
    for group in groups:
        own = [group.continual["scenario"]] if len(scenarios) > 1 else []
        seeds = f"\n{len(group.runs)} seeds" if len(group.runs) > 1 else ""
        cells = [_two_lines(Column(name, "", "%"), group) for name in _CONTINUAL]
        cells += [f"{group.values(name).mean():.3g}" for name in ("megabytes", "minutes")]
        result.add_row(_wrapped(group.name, _WIDEST - 9 * len(own)) + seeds, *own, *cells)
    return result


def _two_lines(column: Column, group: Group) -> str:
    mean, std = column.cell(group.measured(column.name))
    return f"{mean}\n±{std}" if std else mean


def files(groups: Sequence[Group]) -> dict[str, str]:
    """Makes the one table of all measures and costs, by file name.

    Markdown and LaTeX have mean ± standard deviation in one cell; CSV has plain numbers, the standard deviation in a
    column of its own, which is empty for one seed.
    """
    columns = shared(groups)
    different = differences(groups)
    head = ["", "recipe", "seeds", *(_title(column) for column in columns), "differences"]
    rows = []
    for group, text in zip(groups, different):
        cells = [" ± ".join(part for part in column.cell(group.values(column.name)) if part) for column in columns]
        rows.append([group.name, group.recipe, str(len(group.runs)), *cells, text or "–"])
    plain: list[list[object]] = []
    for group, text in zip(groups, different):
        numbers: list[object] = []
        for column in columns:
            values = group.values(column.name)
            mean, std = map(float, mean_and_std(values)) if len(values) else ("", "")
            numbers += [mean, std if len(values) > 1 else ""]
        seeds = " ".join(str(run.seed) for run in group.runs)
        plain.append([group.name, group.recipe, seeds, *numbers, text])
    names = [name for column in columns for name in (column.name, f"{column.name} std")]
    return {
        "comparison.csv": comma_separated(["name", "recipe", "seeds", *names, "differences"], plain),
        "comparison.md": markdown(head, rows),
        "comparison.tex": latex(head, rows, text=(0, 1, len(head) - 1)),
    }


def _title(column: Column) -> str:
    return f"{column.title} (%)" if column.unit else column.title
