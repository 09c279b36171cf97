"""How good frozen features are: nearest neighbours and linear classifiers, with all labels or a few."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy

from recipes.augment import Key, uniform
from recipes.evaluation.features import Features

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
        temperature: > 0.
        draws: int64 [D, n], rows of the bank that are used, in each of D separate classifications; None uses all.

    Returns:
        The classes, int64 [M], or [D, M] with ``draws``.

    Raises:
        ValueError: if ``k`` or ``temperature`` is not positive.
    """
    if k < 1:
        raise ValueError(f"k is {k}: at least one neighbour has to vote")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}: it must be positive")
    neighbour, image = F.normalize(bank.feature), F.normalize(query.feature)
    if draws is None:
        return _vote(neighbour, bank.label, image, num_classes, k, temperature)
    votes = [_vote(neighbour[rows], bank.label[rows], image, num_classes, k, temperature) for rows in draws]
    return torch.stack(votes)  # [D, M]


def linear_probe(
    bank: Features,
    query: Features,
    num_classes: int,
    draws: Tensor | None = None,
    l2: float = 1.0,
    max_iterations: int = 100,
) -> Tensor:
    """Classifies images by multinomial logistic regression on frozen features.

    Features are standardised by mean and standard deviation over the whole bank. The weights W minimise the sum of
    the cross-entropies plus l2 / 2 · ||W||², the bias is not penalised: with l2 = 1, what scikit-learn's
    ``LogisticRegression(C=1)`` minimises. Full-batch L-BFGS, started at zero.

    Args:
        bank: labelled images, the training set.
        query: the images to classify; their labels are not used.
        num_classes: how many classes there are, whether or not they occur.
        draws: int64 [D, n], rows of the bank that are used, in each of D separate classifications; None uses all.
        l2: strength of the penalty, > 0.
        max_iterations: of L-BFGS, which ends earlier when every gradient is below 1e-5.

    Returns:
        The classes, int64 [M], or [D, M] with ``draws``.

    Raises:
        ValueError: if ``l2`` is not positive.
    """
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}: it must be positive, or separable classes have no best weights")
    with torch.inference_mode(False), torch.enable_grad():  # the Trainer validates in inference mode
        train, test = _standardise(bank.feature, query.feature)
        label = bank.label.clone()  # out of inference mode, like what is computed here
        x, label = (train[None], label[None]) if draws is None else (train[draws], label[draws])  # [D, n, F], [D, n]
        basis = None
        if x.shape[1] < x.shape[2]:  # the best weights lie in the span of the images, so n numbers say what F would
            basis, triangle = torch.linalg.qr(x.mT)  # [D, F, n], [D, n, n]
            x = triangle.mT
        weight, bias = _logistic_regression(x, label, num_classes, l2, max_iterations)
    if basis is not None:
        weight = basis @ weight
    # one draw at a time, so that memory does not grow with their number
    classes = torch.stack([(test @ w + b).argmax(1) for w, b in zip(weight, bias)])
    return classes[0] if draws is None else classes


def few_label_draws(
    labels: Tensor, num_classes: int, per_class: int, draws: int, seed: int = 0, names: Sequence[str] | None = None
) -> Tensor:
    """Draws the same number of labelled images of each class, several times.

    Args:
        labels: int64 [N], classes of the images, -1 where unlabelled.
        num_classes: how many classes there are.
        per_class: how many images of each class to draw, > 0.
        draws: how many times, > 0.
        seed: the draws are a function of it and of the labels alone.
        names: of the classes, for the error.

    Returns:
        Rows of ``labels``, int64 [draws, num_classes × per_class], in the order of the classes; none twice in a draw.

    Raises:
        ValueError: if a class has too few images.
    """
    row = torch.arange(len(labels), device=labels.device)
    number = torch.cat([uniform(Key(seed, 0, row, draw), 1) for draw in range(draws)], dim=1)  # [N, draws]
    chosen = []
    for label in range(num_classes):
        members = row[labels == label]
        if len(members) < per_class:
            name = f"{label} ({names[label]})" if names else f"{label}"
            raise ValueError(f"class {name} has {len(members)} labelled images, a draw needs {per_class}")
        first = number[members].argsort(dim=0, stable=True)[:per_class]  # [per_class, draws]
        chosen.append(members[first])
    return torch.cat(chosen).T.contiguous()


def accuracy(prediction: Tensor, label: Tensor, num_classes: int) -> float:
    """The share of images [N] whose predicted class is right."""
    return multiclass_accuracy(prediction, label, num_classes, average="micro").item()


def _vote(
    neighbour: Tensor, label: Tensor, image: Tensor, num_classes: int, k: int, temperature: float
) -> Tensor:  # all of length one
    k = min(k, len(neighbour))
    classes = []
    for part in image.split(max(1, _CHUNK // len(neighbour))):
        similarity, row = (part @ neighbour.T).topk(k, dim=1)
        weight = ((similarity - similarity[:, :1]) / temperature).exp()  # relative to the nearest: no overflow
        votes = weight.new_zeros(len(part), num_classes).scatter_add_(1, label[row], weight)
        classes.append(votes.argmax(1))
    return torch.cat(classes)


def _standardise(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    std, mean = torch.std_mean(train, dim=0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs(), std, 1)  # constant features stay constant
    return (train - mean) / std, (test - mean) / std


def _logistic_regression(
    x: Tensor, label: Tensor, num_classes: int, l2: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Solves D problems [D, n, F] at once; their sum is minimal where each is."""
    problems, images, width = x.shape
    weight = x.new_zeros(problems, width, num_classes, requires_grad=True)
    bias = x.new_zeros(problems, 1, num_classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        history_size=20,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        solver.zero_grad()
        logits = torch.baddbmm(bias, x, weight)  # [D, n, classes]
        fit = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="sum")
        value = (
            fit + l2 / 2 * weight.square().sum()
        ) / images  # means, so that the tolerance means the same everywhere
        value.backward()
        return value

    solver.step(objective)
    return weight.detach(), bias.detach()
