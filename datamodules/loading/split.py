"""Splits that hold the classes in proportion and never change."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_SEED = 0  # of all splits: they are part of the data, so the run's seed has no say


def split(label: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Draws disjoint class-balanced parts.

    Args:
        label: int64 [N], the class of each image.
        sizes: of the parts.

    Returns:
        For each part the positions of its images, int64, with the classes in proportion in every stretch of them, so
        that its first batches stand for all; and last the positions of the rest, ascending.
    """
    names = label.numpy()
    order = np.random.RandomState(_SEED).permutation(len(names))  # unlike Generator's, its stream is frozen (NEP 19)
    quantile = np.empty(len(names))
    for name in np.unique(names):
        members = order[names[order] == name]
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    # Sorted by how far into its class an image stands, every stretch holds the classes in proportion.
    order = order[np.argsort(quantile[order], kind="stable")]
    *parts, rest = np.split(order, np.cumsum(sizes))
    return [torch.from_numpy(part) for part in (*parts, np.sort(rest))]


def per_class(label: Tensor, sizes: Tensor) -> Tensor:
    """Draws the given number of images of each class. Larger numbers draw a superset.

    Args:
        label: int64 [N], the class of each image.
        sizes: int64 [classes], how many images to draw of each class; at most as many as it has.

    Returns:
        The positions of the images, int64 [sum of the sizes] and ascending.
    """
    order = torch.from_numpy(np.random.RandomState(_SEED).permutation(len(label)))  # see above
    order = order[label[order].argsort(stable=True)]  # class after class
    size_of_class = torch.bincount(label, minlength=len(sizes))
    before = size_of_class.cumsum(0) - size_of_class
    number = torch.arange(len(label)) - before[label[order]]  # of each image in its class
    return order[number < sizes[label[order]]].sort().values


def check_fraction(name: str, fraction: float) -> None:
    """Checks an argument that is a share of the images.

    Raises:
        ValueError: if it is not in [0, 1).
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"{name} is {fraction}: it must be at least 0 and below 1")
