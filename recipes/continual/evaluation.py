"""Measures a continual recipe on the images of all tasks."""

import math
import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recipes.evaluation.features import extract
from recipes.nn import evaluating

if TYPE_CHECKING:
    from recipes.continual.base import ContinualRecipe


def fill_row(recipe: "ContinualRecipe", row: int) -> float:
    """Classifies the images of all tasks, and counts the correct ones in a row of the recipe's accuracy matrix.

    The images are those of the test split, or of the validation split if there is no test split. Without either,
    nothing is measured. Every device has to call this.

    Args:
        recipe: with a Trainer and its ``TaskSequence``.
        row: how many tasks were learned before.

    Returns:
        How many seconds it took.
    """
    start, data = time.perf_counter(), recipe.data
    images = data.splits.test or data.splits.val
    if images is None:
        return 0.0
    features = extract({"self": recipe}, data.in_order(images), recipe.trainer, next(recipe.parameters()).dtype)
    feature, label, index = features["self"]
    task = images.task.to(index.device)[index]
    with torch.no_grad(), evaluating(recipe):
        logits = recipe.unmasked_logits(feature)
    aware = masked(logits, recipe.own_labels[task]).argmax(1) == label
    agnostic = masked(logits, recipe.seen_labels).argmax(1) == label
    recipe.accuracy_matrix.update(row, aware, agnostic, task)
    return time.perf_counter() - start


def masked(logits: Tensor, allowed: Tensor) -> Tensor:
    """Logits [B, classes] with -inf for the classes that are not allowed, bool [B, classes] or [classes]."""
    return logits.masked_fill(~allowed, -math.inf)
