"""Linear classifiers on frozen features: logistic regression and support vector machines."""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from recipes.evaluation.chunks import chunks, rows_of_chunk
from recipes.evaluation.features import Features

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # our choice, for standardised features
_FOLDS = 5
_SVM_ITERATIONS = 10_000  # ten times scikit-learn's limit


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
    ``LogisticRegression(C=1)`` minimises. Full-batch L-BFGS, started at zero. The loss and its gradient are summed over
    chunks of the bank, so that beside the bank only a few chunks and the weights of some 50 iterations are in memory.

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
        mean, std = _standard(bank.feature)
        label = bank.label.clone()  # out of inference mode, like what is computed here
        if draws is None:
            problems: Iterable[tuple[Tensor, Tensor]] = [(bank.feature[None], label[None])]
        else:  # as many draws at once as fit in a chunk
            at_once = rows_of_chunk(draws.shape[1] * max(len(mean), num_classes), mean.dtype)
            problems = ((bank.feature[rows], label[rows]) for rows in draws.split(at_once))
        fits = [_fit(x, y, mean, std, num_classes, l2, max_iterations) for x, y in problems]
    weight, bias = (torch.cat(each) for each in zip(*fits))
    classes = []
    for rows in chunks(len(query.feature), len(mean), mean.dtype):
        x = (query.feature[rows] - mean).div_(std)
        classes.append(torch.stack([(x @ w + b).argmax(1) for w, b in zip(weight, bias)]))
    found = torch.cat(classes, dim=1)
    return found[0] if draws is None else found


class SVMFit(NamedTuple):
    """A solved support vector machine. ``feature @ weight.T + bias`` are the decision values of the classes.

    Attributes:
        weight: float64 [classes, F].
        bias: float64 [classes]; -inf for a class without training images, which is never predicted.
        C: the one that was chosen.
        accuracies: in [0, 1], by C: on the validation images, or the mean over the folds of the training images.
    """

    weight: Tensor
    bias: Tensor
    C: float
    accuracies: dict[float, float]


def fit_svm(
    feature: Tensor,
    label: Tensor,
    val_feature: Tensor | None,
    val_label: Tensor | None,
    num_classes: int,
    grid: Sequence[float] = GRID,
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

    Returns:
        The solution, on the CPU.

    Raises:
        ValueError: if ``grid`` is empty or has a value that is not positive, features are not finite, or the labelled
            training images are of fewer than two classes.
    """
    grid = sorted(set(grid))
    if not grid or not 0 < grid[0] <= grid[-1] < float("inf"):
        raise ValueError(f"grid is {list(grid)}: give at least one value of C, all positive")
    x, y = _labelled(feature, label)
    present = y.unique()
    if len(present) < 2:
        raise ValueError(
            f"the labelled training images are of {len(present)} class{'es' * (len(present) != 1)}: a support vector "
            "machine tells at least two apart"
        )
    if not x.isfinite().all():
        raise ValueError("some features are not finite: look at the encoder's weights and at the images")
    mean, std = _standard(x)
    x = (x - mean) / std
    folds: list[tuple[Tensor, Tensor]] = []
    held_out = None
    if val_feature is not None and val_label is not None and (val_label >= 0).any():
        val_x, val_y = _labelled(val_feature, val_label)
        held_out = (val_x - mean) / std, val_y
    elif len(grid) > 1:
        folds = _folds(y)

    solutions, accuracies = {}, {}
    for c in grid:
        if held_out is not None:
            solutions[c] = _solve(x, y, c, num_classes)
            accuracies[c] = _accuracy(*solutions[c], *held_out)
        elif folds:
            each = [_accuracy(*_solve(x[fit], y[fit], c, num_classes), x[left], y[left]) for fit, left in folds]
            accuracies[c] = sum(each) / len(each)
    best = max(accuracies, key=lambda c: (accuracies[c], -c)) if accuracies else grid[len(grid) // 2]
    weight, bias = solutions.get(best) or _solve(x, y, best, num_classes)
    weight = weight / std
    return SVMFit(weight, bias - weight @ mean, best, accuracies)


def _standard(feature: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [F] of features [N, F]; 1 for constant features, which stay constant."""
    std, mean = torch.std_mean(feature, dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * mean.abs(), std, 1)


def _fit(
    x: Tensor, label: Tensor, mean: Tensor, std: Tensor, num_classes: int, l2: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Solves D problems, given features [D, n, F] that are not standardised yet."""
    problems, images, width = x.shape

    parts = chunks(images, problems * max(width, num_classes), x.dtype)
    memory = x.new_empty(problems, parts[0].stop, width)  # of one chunk after the other

    def standardised(rows: slice) -> tuple[Tensor, Tensor]:
        chunk = memory[:, : rows.stop - rows.start]
        return torch.sub(x[:, rows], mean, out=chunk).div_(std), label[:, rows]

    if len(parts) > 1:
        return _logistic_regression(lambda: map(standardised, parts), x.shape, num_classes, l2, max_iterations)
    whole, _ = standardised(parts[0])
    basis = None
    if images < width:  # the best weights lie in the span of the images, so n numbers say what F would
        basis, triangle = torch.linalg.qr(whole.mT)  # [D, F, n], [D, n, n]
        whole = triangle.mT
    weight, bias = _logistic_regression(lambda: [(whole, label)], whole.shape, num_classes, l2, max_iterations)
    return weight if basis is None else basis @ weight, bias


def _logistic_regression(
    parts: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    shape: Sequence[int],
    num_classes: int,
    l2: float,
    max_iterations: int,
) -> tuple[Tensor, Tensor]:
    """Solves D problems of features [D, n, F] at once; their sum is minimal where each is.

    Args:
        parts: gives features and labels, a chunk of the n images at a time.
        shape: D, n and F of all images.
        num_classes: see ``linear_probe``.
        l2: see ``linear_probe``.
        max_iterations: see ``linear_probe``.
    """
    problems, images, width = shape
    example, _ = next(iter(parts()))
    weight = example.new_zeros(problems, width, num_classes, requires_grad=True)
    bias = example.new_zeros(problems, 1, num_classes, requires_grad=True)
    del example
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        history_size=20,
        tolerance_grad=1e-5,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        """The mean over the images, so that the tolerance means the same everywhere."""
        solver.zero_grad()
        value = torch.zeros_like(weight[0, 0, 0])
        for x, label in parts():
            logits = torch.baddbmm(bias, x, weight)  # [D, rows, classes]
            fit = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="sum")
            (fit / images).backward()
            value = value + fit.detach()
        penalty = l2 / 2 * weight.square().sum()
        (penalty / images).backward()
        return (value + penalty.detach()) / images

    solver.step(objective)
    return weight.detach(), bias.detach()


def _labelled(feature: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    rows = (label >= 0).nonzero().flatten()
    return feature[rows].cpu().double(), label[rows].cpu()


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
        machine = LinearSVC(C=c, dual=False, max_iter=_SVM_ITERATIONS).fit(x.numpy(), y.numpy())
    for warning in caught:
        if not issubclass(warning.category, ConvergenceWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        rank_zero_info(
            f"the support vector machine with C = {c:g} was stopped after {_SVM_ITERATIONS:,} iterations, before its "
            "end: another C may be better than its accuracy tells"
        )
    found, offset = torch.from_numpy(machine.coef_), torch.from_numpy(machine.intercept_)
    if len(found) == 1:  # two classes: the second against the first
        found, offset = torch.cat([-found, found]), torch.cat([-offset, offset])
    present = torch.from_numpy(machine.classes_)
    weight = x.new_zeros(num_classes, x.shape[1]).index_copy(0, present, found)
    return weight, x.new_full((num_classes,), -torch.inf).index_copy(0, present, offset)


def _accuracy(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> float:
    return ((x @ weight.T + bias).argmax(1) == y).double().mean().item()
