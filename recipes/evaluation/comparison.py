"""Compares runs: seeds averaged, measures that runs share, differences of their configurations."""

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from recipes.evaluation.continual import mean_over_tasks, measures
from recipes.evaluation.runs import Run, alike
from recipes.evaluation.tables import mean_and_std, number, versions

COSTS = ("minutes", "epochs", "steps", "images_per_second", "parameters", "megabytes", "flops")
_LONGEST = 36  # letters of the settings in a name
_PER_CENT = re.compile(
    "accuracy|knn|linear|precision|recall|f1|agreement|calibration_error|forgetting|transfer|task_[0-9]+$"
)
_TITLES = {"images_per_second": "images/s", "megabytes": "MB", "flops": "MFLOP/image"}


class Group(NamedTuple):
    """Runs that differ in their seed alone, or a single run.

    Attributes:
        name: that no other group has.
        runs: at least one.
    """

    name: str
    runs: list[Run]

    @property
    def recipe(self) -> str:
        """Class name of the recipe."""
        return self.runs[0].recipe

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration of all runs, by dotted keys."""
        return self.runs[0].settings

    def values(self, name: str) -> Tensor:
        """A measure or cost of each run that has it, float64 [runs]."""
        found = [run.cost if name in COSTS else run.measures for run in self.runs]
        return torch.tensor([values[name] for values in found if name in values], dtype=torch.float64)

    # Continual runs

    @property
    def is_continual(self) -> bool:
        """Whether the runs have learned a sequence of tasks."""
        return all("continual" in run.reports for run in self.runs)

    @property
    def continual(self) -> dict[str, Any]:
        """The ``continual.json`` of the first run."""
        return self.runs[0].reports["continual"]

    @property
    def matrices(self) -> list[Tensor]:
        """The accuracy matrix of each run, in the view of the scenario: float64 [T+1, T]."""
        reports = [run.reports["continual"] for run in self.runs]
        rows = [report["matrix"][report["view"]] for report in reports]
        return [
            torch.tensor([[torch.nan if x is None else x for x in row] for row in matrix], dtype=torch.float64)
            for matrix in rows
        ]

    def measured(self, name: str) -> Tensor:
        """One of ``MEASURES`` of each run, float64 [runs]; NaN where it is undefined."""
        view, scenario = self.continual["view"], self.continual["scenario"]
        return self.of_each(lambda matrix: measures(matrix, view, scenario)[name])

    def of_each(self, measure: Callable[[Tensor], Any]) -> Tensor:
        """Applies a function to the matrix of each run: float64 [runs, ...]."""
        return torch.stack([torch.as_tensor(measure(matrix), dtype=torch.float64) for matrix in self.matrices])


class Column(NamedTuple):
    """How a measure or a cost is shown.

    Attributes:
        name: under which it is logged, or the name of the cost.
        title: without unit.
        unit: "%" or empty.
    """

    name: str
    title: str
    unit: str

    def cell(self, values: Tensor) -> tuple[str, str]:
        """Formats mean and standard deviation; a dash without values, no deviation for one seed.

        A count that is the same for all seeds has no deviation either.
        """
        if not len(values) or values.isnan().all():
            return "–", ""
        mean, std = map(float, mean_and_std(values))
        return self._text(mean), self._text(std) if len(values) > 1 and (std or self.unit) else ""

    def _text(self, value: float) -> str:
        if self.unit:
            return f"{100 * value:.1f}"
        if self.name == "flops":
            value /= 1e6
        whole = self.name in ("epochs", "steps", "parameters", "images_per_second")
        return f"{value:,.0f}" if whole else f"{value:.3g}"


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Puts runs together that have the same name and settings and different seeds, in the order given.

    Groups of the same name get the settings in which they differ added to their names or, if these are long, the time
    of their first run.
    """
    found: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        found.setdefault(alike(run), []).append(run)
    parts: list[list[Run]] = []
    for same in found.values():
        parts += [same] if len({run.seed for run in same}) == len(same) else [[run] for run in same]
    names = [part[0].name for part in parts]
    for name in {name for name in names if names.count(name) > 1}:
        places = [place for place, other in enumerate(names) if other == name]
        apart = [f"{name} {text}" for text in differences([Group(name, parts[place]) for place in places], short=True)]
        if len(set(apart)) < len(apart) or max(map(len, apart)) > len(name) + _LONGEST:
            apart = [f"{name}/{parts[place][0].directory.name}" for place in places]
        for place, own in zip(places, apart):
            names[place] = own
    names = [name if names.count(name) == 1 else str(part[0].directory) for name, part in zip(names, parts)]
    return [Group(name, part) for name, part in zip(names, parts)]


def differences(groups: Sequence[Group], short: bool = False) -> list[str]:
    """Lists the settings of each group that not all groups share, as ``model.temperature 0.2, ...``.

    A setting that only some groups have, because a class differs, is listed if it differs among these.

    Args:
        groups: to tell apart.
        short: only the last word of each key.
    """
    keys = list(dict.fromkeys(key for group in groups for key in group.settings))
    differing = []
    for key in keys:
        values = {json.dumps(group.settings[key], default=str) for group in groups if key in group.settings}
        if len(values) > 1:
            differing.append(key)
    first = {"model": 0, "data": 1, "trainer": 2}
    differing.sort(key=lambda key: (first.get(key.partition(".")[0], len(first)), key))
    return [
        ", ".join(
            f"{key.rpartition('.')[2] if short else key} {setting(group.settings[key])}"
            for key in differing
            if key in group.settings
        )
        for group in groups
    ]


def setting(value: Any) -> str:
    """Formats the value of a setting; a class by its own name."""
    if isinstance(value, str):
        return value.rpartition(".")[2] if re.fullmatch(r"[a-z_]+(\.\w+)*\.[A-Z]\w*", value) else value
    if isinstance(value, list):
        return f"[{', '.join(map(setting, value))}]"
    if isinstance(value, dict) and "class_path" in value:
        arguments = ", ".join(f"{name} {setting(each)}" for name, each in value.get("init_args", {}).items())
        return f"{setting(value['class_path'])}({arguments})"
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, default=str)


def shared(groups: Sequence[Group]) -> list[Column]:
    """Lists the measures and costs that two groups have or, of a single group, all: test, validation, training, cost.

    A measure of some runs of a group counts: the mean is over these.
    """
    least = min(2, len(groups))
    names = list(dict.fromkeys(name for group in groups for run in group.runs for name in run.measures))
    names = [name for name in names if sum(len(group.values(name)) > 0 for group in groups) >= least]
    order = ("test", "val", "train")
    names.sort(key=lambda name: (order.index(name.split("/")[0]), name.count("/"), _rank(name)))
    costs = [name for name in COSTS if any(len(group.values(name)) for group in groups)]
    return [Column(name, _TITLES.get(name, name), "%" if _PER_CENT.search(name) else "") for name in [*names, *costs]]


def _rank(name: str) -> tuple[int, str, int]:
    """Accuracies of classifiers first, then neighbours, then linear; few labels before many."""
    word = name.rpartition("/")[2]
    few = re.search(r"_(\d+)_per_class", word)
    first = ("accuracy", "average_accuracy", "knn", "linear", "macro")
    place = next((i for i, start in enumerate(first) if word.startswith(start)), len(first))
    return place, word if place == len(first) else "", int(few[1]) if few else 10**6


def report(groups: Sequence[Group], notes: Sequence[str]) -> dict[str, Any]:
    """Puts together the content of ``comparison.json``.

    Args:
        groups: the rows.
        notes: lines on what was left out or cannot be compared.
    """

    def both(values: Tensor) -> dict[str, float | None]:
        return dict(zip(("mean", "std"), map(number, mean_and_std(values))))

    columns = [column.name for column in shared(groups)]
    runs = []
    for group, different in zip(groups, differences(groups)):
        found = {name: both(values) for name in columns if len(values := group.values(name))}
        entry: dict[str, Any] = {
            "name": group.name,
            "recipe": group.recipe,
            "seeds": [run.seed for run in group.runs],
            "directories": [str(run.directory) for run in group.runs],
            "differences": different,
            "measures": {name: value for name, value in found.items() if name not in COSTS},
            "cost": {name: value for name, value in found.items() if name in COSTS},
        }
        if group.is_continual:
            entry["scenario"], entry["view"] = group.continual["scenario"], group.continual["view"]
            entry["mean_after_each_task"] = [both(column) for column in group.of_each(mean_over_tasks).T]
            entry["matrices"] = [[[number(x) for x in row] for row in matrix] for matrix in group.matrices]
        runs.append(entry)
    return {
        "std": "sample standard deviation over the seeds",
        "notes": list(notes),
        "runs": runs,
        "versions": versions(),
    }
