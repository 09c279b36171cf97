"""Formats numbers: cells of tables for people, values for a file."""

import math
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import lightning
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor

WIDTH = 80
"""Columns of a terminal that every table fits."""


def mean_and_std(values: Tensor | Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean and sample standard deviation over the first dimension; the deviation of a single value is 0.

    Args:
        values: [N, ...], N > 0; numbers that are no tensor are taken in float64.
    """
    numbers = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
    return numbers.mean(0), numbers.std(0, correction=min(1, len(numbers) - 1))


def number(value: float | Tensor) -> float | None:
    """A number as JSON holds it: null for NaN."""
    value = float(value)
    return None if math.isnan(value) else value


def per_cent(mean: float | Tensor | None, std: float | Tensor | None = None) -> str:
    """A cell: a number times 100, with ± its standard deviation where that is given; a dash for null and NaN."""
    if mean is None or math.isnan(mean):
        return "–"
    return f"{100 * mean:.1f}" + ("" if std is None else f" ±{100 * std:.1f}")


def new_table(**options: Any) -> Table:
    """An empty table in the style of all: a line below the head, no frame.

    Args:
        **options: of ``rich.table.Table``.
    """
    return Table(**{"box": SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True, **options})


def terminal() -> Console:
    """Prints tables and lines, 80 columns wide."""
    return Console(width=WIDTH, highlight=False, markup=False)


def versions() -> dict[str, str]:
    """Of torch, lightning and, where it is installed, this distribution."""
    found = {"torch": torch.__version__, "lightning": lightning.__version__}
    try:
        return {**found, "training-recipes": version("training-recipes")}
    except ModuleNotFoundError:  # run from the source tree
        return found
