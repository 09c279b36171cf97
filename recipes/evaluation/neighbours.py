"""Classification by nearest neighbours: how well images of a class lie together."""

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.evaluation.chunks import chunks
from recipes.evaluation.features import Features
from recipes.evaluation.transferability import checked


def knn(
    bank: Features,
    query: Features,
    num_classes: int,
    k: int = 200,
    temperature: float = 0.07,
    draws: Tensor | None = None,
) -> Tensor:
    """Classifies images by a vote of their nearest neighbours (Wu et al., 2018, arXiv:1805.01978, Section 3.4).

    The k images of the bank with the highest cosine similarity s vote for their class with weight exp(s / temperature).

    Args:
        bank: labelled images, the neighbours.
        query: the images to classify; their labels are not used.
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
    if draws is None:
        return _vote(bank.feature, bank.label, query.feature, num_classes, k, temperature)
    votes = [_vote(bank.feature[rows], bank.label[rows], query.feature, num_classes, k, temperature) for rows in draws]
    return torch.stack(votes)  # [D, M]


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
    predicted = _vote(x, label, x, num_classes, k, temperature, exclude_self=True)
    return int((predicted == label).sum()) / len(x)


def _vote(
    neighbour: Tensor,
    label: Tensor,
    image: Tensor,
    num_classes: int,
    k: int,
    temperature: float,
    exclude_self: bool = False,
) -> Tensor:
    """Classifies images [M, F] by neighbours [N, F], a chunk of either at a time.

    With ``exclude_self`` images and neighbours are the same, and no image is its own neighbour.
    """
    k = min(k, len(neighbour) - exclude_self)
    width = neighbour.shape[1]
    theirs = chunks(len(neighbour), width, neighbour.dtype)
    ours = chunks(len(image), max(width, theirs[0].stop, num_classes), neighbour.dtype)
    nearest = [
        (image.new_empty(rows.stop - rows.start, 0), label.new_empty(rows.stop - rows.start, 0)) for rows in ours
    ]
    for there in theirs:
        unit = F.normalize(neighbour[there])
        for number, here in enumerate(ours):
            similarity = F.normalize(image[here]) @ unit.T
            if exclude_self:
                similarity.diagonal(here.start - there.start).fill_(-torch.inf)
            nearest[number] = _nearest(similarity, label[there], k, *nearest[number])
    classes = []
    for similarity, voter in nearest:
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: no overflow
        votes = weight.new_zeros(len(weight), num_classes).scatter_add_(1, voter, weight)
        classes.append(votes.argmax(1))
    return torch.cat(classes)


def _nearest(similarity: Tensor, label: Tensor, k: int, known: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities [M, k] and labels of the nearest among neighbours [M, n] and those known so far [M, m]."""
    similarity, row = similarity.topk(min(k, len(label)), dim=1)
    if not known.shape[1]:
        return similarity, label[row]
    joined = torch.cat([known, similarity], dim=1)
    similarity, place = joined.topk(min(k, joined.shape[1]), dim=1)
    return similarity, torch.cat([labels, label[row]], dim=1).gather(1, place)
