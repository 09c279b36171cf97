"""Classification by nearest neighbours: how well images of a class lie together."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.evaluation.bank import Bank
from recipes.evaluation.chunks import chunks, rows_of_chunk
from recipes.evaluation.features import Features
from recipes.evaluation.transferability import checked


def knn(
    bank: Features | Bank,
    query: Features,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.07,
    draws: Tensor | None = None,
) -> Tensor:
    """Classifies images by a vote of their nearest neighbours (Wu et al., 2018, arXiv:1805.01978, Section 3.4).

    The k images of the bank with the highest cosine similarity s vote for their class with weight exp(s / temperature).

    If devices share the bank, each of them has to call this, and gets the same result as one device that has all of it:
    see ``nearest``.

    Args:
        bank: labelled images, the neighbours.
        query: the images to classify, the same on every device; their labels are not used.
        num_classes: how many classes there are, whether or not they occur.
        k: number of neighbours, > 0; a smaller bank votes as a whole.
        temperature: temperature of the votes, > 0.
        draws: int64 [D, n], rows of the bank that are used, in each of D separate classifications; None uses all.

    Returns:
        The classes, int64 [M], or [D, M] with ``draws``.

    Raises:
        ValueError: if ``k`` or ``temperature`` is not positive.
    """
    if k < 1:
        raise ValueError(f"k is {k}: it must be at least 1")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: it must be positive")
    bank = Bank.of(bank)
    if draws is None:
        return _vote(bank, query.feature, num_classes, k, temperature)

    def classify(feature: Tensor, label: Tensor) -> Tensor:
        each = [Bank.of(Features(x, y, y)) for x, y in zip(feature, label, strict=True)]
        return torch.stack([_vote(draw, query.feature, num_classes, k, temperature) for draw in each])

    return bank.over_draws(draws, 1, len(query.label), classify)


def leave_one_out(feature: Tensor, label: Tensor, num_classes: int, k: int, temperature: float = 0.07) -> float:
    """Classifies every image by a vote of its nearest neighbours among the other images, as ``knn`` does.

    Args:
        feature: [N, F].
        label: int64 [N], from 0 on.
        num_classes: how many classes there are.
        k: number of neighbours, > 0; fewer other images all vote.
        temperature: temperature of the votes, > 0.

    Returns:
        The share of images whose class is right, in [0, 1].

    Raises:
        ValueError: if there are fewer than two images, features and labels do not fit, or ``k`` is not positive.
    """
    x = checked(feature, label, num_classes)
    if k < 1 or len(x) < 2:
        raise ValueError(f"there are {len(x)} images and k is {k}: it takes two images and one neighbour at least")
    predicted = _vote(Bank.of(Features(x, label, label)), x, num_classes, k, temperature, exclude_self=True)
    return int((predicted == label).sum()) / len(x)


def nearest(
    bank: Features | Bank, image: Tensor, k: int, classes: int = 1, exclude_self: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Finds the images of a bank that are most similar to images [M, F], a chunk of either at a time.

    Every device searches its own share of the bank, and the lists of all devices are merged. Images of the bank whose
    similarities are equal up to rounding may take each other's place.

    Args:
        bank: the neighbours.
        image: features whose neighbours are sought, the same on every device.
        k: number of neighbours, > 0; of a smaller bank all.
        classes: how many numbers for each image the caller needs beside.
        exclude_self: whether images and neighbours are the same, on one device, and no image is its own neighbour.

    Yields:
        Cosine similarities in descending order, and rows of the bank, both [m, k]; the chunks in their order.
    """
    bank = Bank.of(bank)
    images, width = len(bank.label), image.shape[1]
    k = min(k, images - exclude_self)
    theirs = chunks(len(bank.row), width, bank.dtype)
    size = min(images, rows_of_chunk(width, bank.dtype))  # the same on all devices, so that they agree on the chunks
    for here in chunks(len(image), max(width, size, classes), bank.dtype):
        asked = F.normalize(image[here].to(bank.dtype))
        similarity = asked.new_full((len(asked), k), -torch.inf)  # a share may have fewer than k
        row = bank.row.new_zeros(len(asked), k)
        for there in theirs:
            found, place = _search(asked, bank.feature[there], k, here.start - there.start if exclude_self else None)
            similarity, row = _best(k, [similarity, found], [row, bank.row[there][place]])
        yield _best(k, bank.gather(similarity), bank.gather(row), ordered=True)


def _search(asked: Tensor, feature: Tensor, k: int, itself: int | None) -> tuple[Tensor, Tensor]:
    """Similarities and places [m, k] of the k most similar of a chunk of neighbours, in any order.

    Args:
        asked: unit vectors [m, F].
        feature: features of the neighbours [n, F].
        k: number of neighbours; of fewer all.
        itself: diagonal of the similarities [m, n] on which an image meets itself; None if there is none.
    """
    similarity = asked @ F.normalize(feature.to(asked.dtype)).T
    if itself is not None:
        similarity.diagonal(itself).fill_(-torch.inf)
    best, place = similarity.topk(min(k, len(feature)), dim=1, sorted=False)
    return best, place


def _best(k: int, similarity: list[Tensor], row: list[Tensor], ordered: bool = False) -> tuple[Tensor, Tensor]:
    """The k most similar of lists [m, n] of neighbours."""
    best, place = torch.cat(similarity, dim=1).topk(k, dim=1, sorted=ordered)
    return best, torch.cat(row, dim=1).gather(1, place)


def _vote(
    bank: Bank, image: Tensor, num_classes: int, k: int, temperature: float, exclude_self: bool = False
) -> Tensor:
    """Classifies images [M, F]; see ``nearest``."""
    classes = []
    for similarity, row in nearest(bank, image, k, num_classes, exclude_self):
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: no overflow
        votes = weight.new_zeros(len(weight), num_classes).scatter_add_(1, bank.label[row], weight)
        classes.append(votes.argmax(1))
    return torch.cat(classes)
