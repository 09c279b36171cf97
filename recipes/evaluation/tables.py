"""How an evaluation is told: a table for people, numbers for a file."""

from importlib.metadata import version

import lightning
import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

Accuracies = dict[str, dict[str, list[float]]]
"""By row and column, one number in [0, 1] for each draw of the labels."""


def table(accuracies: Accuracies, k: int, temperature: float, draws: int) -> Table:
    """The accuracies in per cent, 80 columns wide; the protocol stands below."""
    result = Table(
        title="Test accuracy of frozen features (%)",
        caption=f"kNN: k = {k}, temperature {temperature}; linear: logistic regression.\n"
        f"Few labels: mean ± standard deviation of {draws} draws.",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    result.add_column("", no_wrap=True)
    columns = sorted(next(iter(accuracies.values())), key=_place)
    for column in columns:
        probe, _, few = column.partition("_")
        head = "kNN" if probe == "knn" else probe
        labels = f"{few.removesuffix('_per_class')}/class" if few else "all"
        result.add_column(f"{head}\n{labels}", justify="right", no_wrap=True)
    for row, results in accuracies.items():
        result.add_row(row, *(_cell(results[column]) for column in columns))
    return result


def summary(accuracies: Accuracies) -> dict[str, dict[str, float | dict[str, float]]]:
    """One number for each accuracy with all labels, mean and standard deviation over the draws with a few."""
    return {
        row.replace(" ", "_"): {
            column: dict(zip(("mean", "std"), _spread(values))) if "_" in column else values[0]
            for column, values in results.items()
        }
        for row, results in accuracies.items()
    }


def versions() -> dict[str, str]:
    """Of torch, lightning and, where it is installed, this distribution."""
    found = {"torch": torch.__version__, "lightning": lightning.__version__}
    try:
        return {**found, "training-recipes": version("training-recipes")}
    except ModuleNotFoundError:  # run from the source tree
        return found


def _place(column: str) -> tuple[bool, float]:
    """Nearest neighbours first, and few labels before many."""
    probe, _, few = column.partition("_")
    return probe != "knn", int(few.removesuffix("_per_class")) if few else float("inf")


def _cell(values: list[float]) -> str:
    mean, std = _spread(values)
    return f"{100 * mean:.1f}" if len(values) == 1 else f"{100 * mean:.1f} ±{100 * std:.1f}"


def _spread(values: list[float]) -> tuple[float, float]:
    """Mean and sample standard deviation."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return numbers.mean().item(), numbers.std(correction=min(1, len(values) - 1)).item()
