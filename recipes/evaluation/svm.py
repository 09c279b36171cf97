"""Linear support vector machines on frozen features."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from recipes.evaluation.bank import Bank
from recipes.evaluation.chunks import chunks
from recipes.evaluation.features import Features
from recipes.evaluation.linear import standard

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # our choice, for standardised features
MAX_BYTES = 1 << 30
_FOLDS = 5
_ITERATIONS = 10_000  # ten times scikit-learn's limit


class SVMFit(NamedTuple):
    """A solved support vector machine. ``feature @ weight.T + bias`` are the decision values of the classes.

    Attributes:
        weight: float64 [classes, F].
        bias: float64 [classes]; -inf for a class without training images, which is never predicted.
        C: the one that was chosen.
        accuracies: in [0, 1], by C: on the validation images, or the mean over the folds of the training images.
        subset: the training images that were used, if not all: "one of every 3 labelled images: 400 of 1,200".
    """

    weight: Tensor
    bias: Tensor
    C: float
    accuracies: dict[float, float]
    subset: str = ""


def fit_svm(
    feature: Tensor,
    label: Tensor,
    val_feature: Tensor | None,
    val_label: Tensor | None,
    num_classes: int,
    grid: Sequence[float] = GRID,
    max_bytes: int = MAX_BYTES,
    results: Callable[[Sequence[Callable[[], Any]]], list[Any]] | None = None,
) -> SVMFit:
    """Solves linear support vector machines, one class against the rest, and chooses C by validation.

    Each class has weights w and a bias b that minimise ½ (||w||² + b²) + C Σ max(0, 1 - y (w·x + b))² over all training
    images, where x are features standardised over the training images and y is 1 for the images of the class and -1
    for the others: scikit-learn's ``LinearSVC``, of LIBLINEAR (Fan et al., 2008). The standardisation is then folded
    into w and b. Images without a label take no part.

    The C that classifies most validation images right is chosen, of equal ones the smallest. Without validation images
    it is the mean over five stratified folds of the training images, or as many as the smallest class has images; where
    a class has a single image there is nothing to choose by, and C is the one in the middle of ``grid``.

    Args:
        feature: float [N, F], of the training images.
        label: int64 [N], -1 where unlabelled.
        val_feature: float [M, F], of the validation images, or None.
        val_label: int64 [M], or None.
        num_classes: how many classes there are, whether or not they occur.
        grid: values of C to choose from, all positive.
        max_bytes: largest size of the training images' features in float64, > 0. If all would take more, every n-th
            labelled image is used. The default is 1 GiB: 65,536 images with the 2,048 features of a ResNet-50. Solving
            takes about three times as much.
        results: does jobs, the longest first, and returns their results, such as ``Together.results``. If None, does
            them one after the other.

    Returns:
        The solution, on the CPU.

    Raises:
        ValueError: if ``grid`` is empty or has a value that is not positive, features are not finite, or the labelled
            training images are of fewer than two classes.
    """
    grid = sorted(set(grid))
    if not grid or not 0 < grid[0] <= grid[-1] < float("inf"):
        raise ValueError(f"grid is {list(grid)}: give at least one value of C, all positive")
    labelled = (label >= 0).nonzero().flatten()
    every = max(1, math.ceil(8 * feature.shape[1] * len(labelled) / max_bytes))
    rows = labelled[::every]
    x, y = feature[rows].cpu().double(), label[rows].cpu()
    present = y.unique()
    if len(present) < 2:
        raise ValueError(
            f"the labelled training images are of {len(present)} class{'es' * (len(present) != 1)}: a support vector "
            "machine tells at least two apart"
        )
    if not x.isfinite().all():
        raise ValueError("some features are not finite: look at the encoder's weights and at the images")
    mean, std = standard(Bank.of(Features(x, y, y)))
    x.sub_(mean).div_(std)
    folds: list[tuple[Tensor, Tensor]] = []
    held_out = None
    if val_feature is not None and val_label is not None and (val_label >= 0).any():
        known = (val_label >= 0).nonzero().flatten()
        held_out = val_feature[known].cpu(), val_label[known].cpu(), mean, std
    elif len(grid) > 1:
        folds = _folds(y)

    solutions: dict[float, tuple[Tensor, Tensor]] = {}
    accuracies: dict[float, float] = {}
    results = results or _one_by_one
    longest_first = grid[::-1]  # with C grows the number of iterations
    if held_out is not None:
        jobs = [partial(_solve, x, y, c, num_classes) for c in longest_first]
        solutions = dict(zip(longest_first, results(jobs)))
        accuracies = {c: _accuracy(*solutions[c], *held_out) for c in grid}
    elif folds:
        parts = [(c, fold) for c in longest_first for fold in range(len(folds))]
        each = results([partial(_of_fold, x, y, c, num_classes, *folds[fold]) for c, fold in parts])
        accuracies = {c: sum(a for a, (of, _) in zip(each, parts) if of == c) / len(folds) for c in grid}
    best = max(accuracies, key=lambda c: (accuracies[c], -c)) if accuracies else grid[len(grid) // 2]
    weight, bias = solutions.get(best) or results([partial(_solve, x, y, best, num_classes)])[0]
    weight = weight / std
    subset = f"one of every {every} labelled images: {len(rows):,} of {len(labelled):,}" if every > 1 else ""
    return SVMFit(weight, bias - weight @ mean, best, accuracies, subset)


def _folds(y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows to fit on and rows left out, of each fold; none where a class has one image."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(_FOLDS, int(y.unique(return_counts=True)[1].min()))
    if folds < 2:
        return []
    split = StratifiedKFold(folds, shuffle=True, random_state=0).split(y.numpy(), y.numpy())
    return [(torch.from_numpy(fit), torch.from_numpy(left)) for fit, left in split]


def _solve(x: Tensor, y: Tensor, c: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weights [classes, F] and biases [classes] for standardised features."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    # Newton's method on the primal problem, for fewer images than features too: the coordinate descent on the dual
    # that scikit-learn would choose there takes 10 to 100 times as long for C of 1 and more, and stops before the end
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        machine = LinearSVC(C=c, dual=False, max_iter=_ITERATIONS).fit(x.numpy(), y.numpy())
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        rank_zero_info(
            f"the support vector machine with C = {c:g} was stopped after {_ITERATIONS:,} iterations, before its end: "
            "this C may be better than its accuracy tells"
        )
    found, offset = torch.from_numpy(machine.coef_), torch.from_numpy(machine.intercept_)
    if len(found) == 1:  # two classes: the second against the first
        found, offset = torch.cat([-found, found]), torch.cat([-offset, offset])
    present = torch.from_numpy(machine.classes_)
    weight = x.new_zeros(num_classes, x.shape[1]).index_copy(0, present, found)
    return weight, x.new_full((num_classes,), -torch.inf).index_copy(0, present, offset)


def _one_by_one(jobs: Sequence[Callable[[], Any]]) -> list[Any]:
    return [job() for job in jobs]


def _of_fold(x: Tensor, y: Tensor, c: float, num_classes: int, fit: Tensor, left: Tensor) -> float:
    """The accuracy on the rows left out, of the solution for the others."""
    return _accuracy(*_solve(x[fit], y[fit], c, num_classes), x[left], y[left])


def _accuracy(
    weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, mean: Tensor | float = 0.0, std: Tensor | float = 1.0
) -> float:
    parts = chunks(len(x), max(x.shape[1], len(bias)), torch.float64)
    right = [(((x[rows].double() - mean) / std) @ weight.T + bias).argmax(1) == y[rows] for rows in parts]
    return torch.cat(right).double().mean().item()
