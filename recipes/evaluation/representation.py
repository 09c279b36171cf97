"""What the evaluation of an encoder measures: nearest neighbours and linear classifiers on its features."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recipes.evaluation.bank import Bank
from recipes.evaluation.classification import accuracy
from recipes.evaluation.features import Features
from recipes.evaluation.few_labels import few_label_draws
from recipes.evaluation.linear import linear_probe
from recipes.evaluation.neighbours import knn, nearest
from recipes.evaluation.tables import mean_and_std

PIXEL_SIDE = 32
"""Largest side, in pixels, of the images that count as raw pixels; larger ones are averaged over areas."""

Accuracies = dict[str, dict[str, list[float]]]
"""By row and column, one number in [0, 1] for each draw of the labels."""


class Measured(NamedTuple):
    """Features on the CPU.

    Attributes:
        bank: the labelled training images that are most similar to some of the test images: see ``similar``.
        test: the labelled test images.
    """

    bank: Features
    test: Features


class Pixels(nn.Module):
    """Images as features: floats in [0, 1]."""

    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W], uint8 or float in [0, 1], to [B, C × at most 32 × at most 32]."""
        image = image if image.is_floating_point() else image.float() / 255
        height, width = image.shape[-2:]
        return F.adaptive_avg_pool2d(image, (min(height, PIXEL_SIDE), min(width, PIXEL_SIDE))).flatten(1)


def measure(
    bank: Features | Bank,
    query: Features,
    num_classes: int,
    k: int,
    temperature: float,
    few: Mapping[int, Tensor] | None = None,
) -> dict[str, list[float]]:
    """Classifies images by the features of labelled ones.

    If devices share the bank, each of them has to call this.

    Args:
        bank: labelled images.
        query: labelled images to classify, the same on every device.
        num_classes: number of classes.
        k: number of neighbours that vote, > 0.
        temperature: of their votes, > 0.
        few: for a number of labels per class, rows of the bank to use, int64 [draws, n].

    Returns:
        Accuracies in [0, 1] of ``knn`` and ``linear``, and of both with few labels (``knn_5_per_class``), one for each
        draw.
    """

    def score(prediction: Tensor) -> list[float]:
        return [accuracy(row, query.label, num_classes) for row in prediction.view(-1, len(query.label))]

    results = {}
    for n, draws in (few or {}).items():
        results[f"knn_{n}_per_class"] = score(knn(bank, query, num_classes, k, temperature, draws))
        results[f"linear_{n}_per_class"] = score(linear_probe(bank, query, num_classes, draws))
    results["knn"] = score(knn(bank, query, num_classes, k, temperature))
    results["linear"] = score(linear_probe(bank, query, num_classes))
    return results


def similar(bank: Bank, image: Tensor, k: int) -> Features:
    """The images of a bank that are among the k most similar ones to any of a few images [M, F], in order.

    If devices share the bank, each of them has to call this.
    """
    rows = torch.cat([row for _, row in nearest(bank, image, k)]).unique()
    return Features(bank.take(rows), bank.label[rows], bank.index[rows])


def draws_of_few_labels(
    label: Tensor, num_classes: int, per_class: Sequence[int], draws: int, seed: int, names: Sequence[str]
) -> tuple[dict[int, Tensor], list[str]]:
    """Draws the labelled images of all few-label columns.

    Args:
        label: int64 [N], classes of the images of the bank.
        num_classes: number of classes.
        per_class: numbers of images of each class, one for each column.
        draws: number of draws.
        seed: the draws are a function of it and of the labels alone.
        names: of the classes.

    Returns:
        By number of images per class the rows, int64 [draws, n]; and the reasons why columns are left out, as a class
        has too few images.
    """
    found, missing = {}, []
    for n in per_class:
        try:
            found[n] = few_label_draws(label, num_classes, n, draws, seed, names)
        except ValueError as error:  # the other columns are worth having
            missing.append(f"no results for {n} labels per class: {error}")
    return found, missing


def summary(accuracies: Accuracies) -> dict[str, dict[str, float | dict[str, float]]]:
    """One number for each accuracy with all labels, mean and standard deviation over the draws with a few."""
    return {
        row.replace(" ", "_"): {
            column: dict(zip(("mean", "std"), map(float, mean_and_std(values)))) if "_" in column else values[0]
            for column, values in results.items()
        }
        for row, results in accuracies.items()
    }


def have_same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of one kind have the same parameters and buffers, on any devices."""
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name].to(value)) for name, value in one.state_dict().items())
