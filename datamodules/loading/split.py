"""Splits that do not depend on the seed of the run."""

import hashlib
import os
import unicodedata
from collections.abc import Collection, Iterable, Sequence

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


def split_by_name(
    names: Iterable[str], label: Tensor, val: float, test: float, for_training: Collection[str] = ()
) -> tuple[Tensor, Tensor, Tensor]:
    """Assigns each image to a split by a hash of its name, so that no other image matters.

    The hash is a number in [0, 1). Images below ``test`` are for testing, those from 1 - ``val`` for validation. A
    larger share therefore keeps the images of a smaller one, and images that are added or removed move no other image.
    One exception: if none of a class were left for training, its image nearest to the middle is. It would return to its
    split once the class has others: no rule without memory gives every class a training image and never tests on one
    that was trained on. ``for_training`` is the memory.

    Args:
        names: names of the N images, such as "cat/1.png".
        label: int64 [N], the class of each image.
        val: expected share of the images for validation, >= 0.
        test: expected share of the images for testing, >= 0; both shares are less than 1 together.
        for_training: names of images that are for training whatever their hash, because a network was trained on them.

    Returns:
        The positions of the images for training, ascending, and of those for validation and testing, int64. The latter
        are ordered by their hash, so that their first batches stand for all.
    """
    names = list(names)
    place = torch.tensor([_hashed(name) for name in names], dtype=torch.float64)
    is_test, is_val = place < test, place >= 1 - val
    if for_training:
        kept = torch.tensor([same_name(name) in for_training for name in names], dtype=torch.bool)
        is_test, is_val = is_test & ~kept, is_val & ~kept
    present, class_of = label.unique(return_inverse=True)
    trained = torch.zeros(len(present), dtype=torch.bool).index_fill_(0, class_of[~(is_test | is_val)], True)
    for missing in (~trained).nonzero().flatten():
        members = (class_of == missing).nonzero().flatten()
        kept = members[(place[members] - 0.5).abs().argmin()]
        is_test[kept] = is_val[kept] = False
    drawn = [rows[place[rows].argsort()] for rows in (is_val.nonzero().flatten(), is_test.nonzero().flatten())]
    return (~(is_test | is_val)).nonzero().flatten(), drawn[0], drawn[1]


def only_for_want_of_others(names: Iterable[str], val: float, test: float) -> tuple[str, ...]:
    """The names of the training images that are so because their class had no other, sorted.

    Args:
        names: names of the training images, as for ``split_by_name``.
        val: share of the images for validation.
        test: share of the images for testing.
    """
    return tuple(sorted(same_name(name) for name in names if not test <= _hashed(name) < 1 - val))


def same_name(name: str) -> str:
    """A name as it is on every file system, whatever form that keeps accents in."""
    name = name if name.isascii() else unicodedata.normalize("NFC", name)
    return name.replace(os.sep, "/")


def _hashed(name: str) -> float:
    """A number in [0, 1) with 53 random bits."""
    digest = hashlib.blake2b(os.fsencode(same_name(name)), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


def representative(group: Tensor) -> Tensor:
    """Orders images so that the first ones stand for all: one of each group, and then the groups in proportion.

    Args:
        group: int64 [N], the group that each image belongs to, such as its class.

    Returns:
        The positions of the images, int64 [N].
    """
    order = torch.from_numpy(np.random.RandomState(_SEED).permutation(len(group)))
    _, kind, size = group[order].unique(return_inverse=True, return_counts=True)
    by_group = kind.argsort(stable=True)
    number = torch.arange(len(group)) - (size.cumsum(0) - size)[kind[by_group]]  # of each image in its group
    return order[by_group[(number / size[kind[by_group]]).argsort(stable=True)]]


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
