"""Logged metrics over training, averaged over seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recipes.evaluation.comparison import Group
from recipes.evaluation.runs import Run
from recipes.evaluation.tables import mean_and_std


class Curve(NamedTuple):
    """A logged metric of a group over training.

    Attributes:
        x: float64 [N], epochs or optimiser steps.
        mean: float64 [N], over the seeds.
        std: float64 [N], sample standard deviation; 0 for one seed.
    """

    x: Tensor
    mean: Tensor
    std: Tensor


def over_epochs(groups: Sequence[Group]) -> bool:
    """Whether every run has at least two epochs, so that curves are drawn over epochs and not over steps."""
    epochs = [max((row.get("epoch", 0) for row in run.rows), default=0) for group in groups for run in group.runs]
    return min(epochs, default=0) >= 1


def curve(group: Group, name: str, epochs: bool) -> Curve | None:
    """Averages a logged metric over the seeds, at the steps that all of them have.

    Args:
        group: of the runs.
        name: of the metric.
        epochs: whether x is in epochs; otherwise in optimiser steps.

    Returns:
        None if the runs have fewer than two steps in common.
    """
    each = [{row["step"]: row[name] for row in run.rows if name in row and "step" in row} for run in group.runs]
    steps = sorted(set.intersection(*(set(values) for values in each)))
    if len(steps) < 2:
        return None
    values = torch.tensor([[values[step] for step in steps] for values in each], dtype=torch.float64)
    x = torch.tensor(steps, dtype=torch.float64) + 1
    return Curve(_in_epochs(x, group.runs[0]) if epochs else x, *mean_and_std(values))


def _in_epochs(steps: Tensor, run: Run) -> Tensor:
    """Optimiser steps as epochs: in between the steps at which epochs ended."""
    ends = {0.0: 0.0}
    for row in run.rows:
        if "train/loss" in row or any(name.startswith("val/") for name in row):
            ends[row["epoch"] + 1] = max(ends.get(row["epoch"] + 1, 0.0), row["step"] + 1)
    epochs, at = list(ends), list(ends.values())
    return torch.from_numpy(np.interp(steps.numpy(), at, epochs))
