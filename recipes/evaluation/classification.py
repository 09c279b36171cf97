"""What a classifier gets right and wrong: counts of images by class, and scores that follow from them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from recipes.evaluation.tables import number


class Mistake(NamedTuple):
    """An image that the classifier takes for another class.

    Attributes:
        index: position of the image in its dataset.
        file: of the image, below the root of the data; None where images are no files.
        true: name of its class.
        predicted: name of the class that it is taken for.
        confidence: probability that the classifier gives to that class, in [0, 1]; its score, for a classifier without
            probabilities.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    file: str | None
    true: str
    predicted: str
    confidence: float


def accuracy(prediction: Tensor, label: Tensor, num_classes: int) -> float:
    """The share of images [N] whose predicted class is right."""
    return multiclass_accuracy(prediction, label, num_classes, average="micro").item()


def confusion(label: Tensor, said: Tensor, classes: int) -> np.ndarray:
    """Counts images by their true class (rows) and the class they are taken for (columns).

    Args:
        label: int64 [N], the true classes.
        said: int64 [N], the classes that a classifier says.
        classes: how many there are.
    """
    return torch.bincount(label * classes + said, minlength=classes**2).view(classes, classes).numpy()


def scores(matrix: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Precision, recall, F1 and support of each class, and their means.

    Args:
        matrix: images by true class (rows) and predicted class (columns), [classes, classes].
        names: of the classes.

    Returns:
        What ``classes.json`` holds. A precision without predictions and a recall without images is None, and F1 where
        both are; a mean is taken over the classes that have the value.
    """
    right, predicted, support = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
    with np.errstate(invalid="ignore"):
        columns = {
            "precision": right / predicted,
            "recall": right / support,
            "f1": 2 * right / (predicted + support),
        }
    per_class = [
        {
            "name": name,
            **{column: number(values[i]) for column, values in columns.items()},
            "support": int(support[i]),
        }
        for i, name in enumerate(names)
    ]
    return {
        "split": "test",
        "images": int(matrix.sum()),
        "accuracy": number(right.sum() / matrix.sum()),
        "macro": {column: number(np.nanmean(values)) for column, values in columns.items()},
        "classes": per_class,
        "confusion": matrix.tolist(),
    }
