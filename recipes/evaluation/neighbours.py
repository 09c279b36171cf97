"""Classification by nearest neighbours: how well images of a class lie together."""

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.evaluation.features import Features
from recipes.evaluation.transferability import checked

_CHUNK = 1 << 24  # similarities in memory at a time


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
    neighbour, image = F.normalize(bank.feature), F.normalize(query.feature)
    if draws is None:
        return _vote(neighbour, bank.label, image, num_classes, k, temperature)
    votes = [_vote(neighbour[rows], bank.label[rows], image, num_classes, k, temperature) for rows in draws]
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
    x = F.normalize(checked(feature, label, num_classes))
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
    """Classifies images [M, F] by neighbours [N, F], all of length one.

    With ``exclude_self`` images and neighbours are the same, and no image is its own neighbour.
    """
    k = min(k, len(neighbour) - exclude_self)
    classes, start = [], 0
    for part in image.split(max(1, _CHUNK // len(neighbour))):
        similarity = part @ neighbour.T
        if exclude_self:
            similarity.diagonal(start).fill_(-torch.inf)
        similarity, row = similarity.topk(k, dim=1)
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: no overflow
        votes = weight.new_zeros(len(part), num_classes).scatter_add_(1, label[row], weight)
        classes.append(votes.argmax(1))
        start += len(part)
    return torch.cat(classes)
