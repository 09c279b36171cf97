"""Logistic regression on frozen features."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.evaluation.bank import Bank
from recipes.evaluation.chunks import chunks, rows_of_chunk
from recipes.evaluation.features import Features

Parts = Callable[[], Iterable[tuple[Tensor, Tensor]]]
"""Gives features [D, n, F] and labels [D, n] of D problems, a chunk of the images at a time."""


def linear_probe(
    bank: Features | Bank,
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
    chunks of the bank. Beside the bank only a few chunks are in memory, and on the first device the weights of some 50
    iterations in float64.

    If devices share the bank, each of them has to call this. The gradients of all devices are summed, so the weights
    are those of one device that has the whole bank, up to the rounding of the sums.

    Args:
        bank: labelled images, the training set.
        query: the images to classify, the same on every device; their labels are not used.
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
        bank = Bank.of(bank)
        mean, std = standard(bank)
        fit = partial(_fit, mean=mean, std=std, num_classes=num_classes, l2=l2, max_iterations=max_iterations)

        def classify(weight: Tensor, bias: Tensor) -> Tensor:
            classes = []
            for rows in chunks(len(query.feature), len(mean), mean.dtype):
                x = (query.feature[rows] - mean).div_(std)
                classes.append(torch.stack([(x @ w + b).argmax(1) for w, b in zip(weight, bias)]))
            return torch.cat(classes, dim=1)

        if draws is None:
            return classify(*fit(bank))[0]

        def of_draws(feature: Tensor, label: Tensor) -> Tensor:
            banks = [Bank.of(Features(x, y, y)) for x, y in zip(feature, label, strict=True)]
            return classify(*fit(*banks))

        at_once = rows_of_chunk(draws.shape[1] * max(len(mean), num_classes), mean.dtype)  # as many as fit in a chunk
        return bank.over_draws(draws, at_once, len(query.feature), of_draws)


def standard(bank: Bank) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [F] of the features of a bank; 1 for constant features, which stay constant."""
    width = bank.feature.shape[1]
    found = []
    for rows in chunks(len(bank.row), width, bank.dtype):
        if rows.stop > rows.start:
            std, mean = torch.std_mean(bank.feature[rows].to(bank.dtype), dim=0, correction=0)
            found.append((rows.stop - rows.start, mean.cpu().double(), std.cpu().double()))

    def over_images(parts: list[Tensor]) -> Tensor:
        part = torch.stack([torch.zeros(width, dtype=torch.float64), *parts]).sum(0)
        part = bank.total(part.to(bank.feature.device)).cpu() if bank.devices > 1 else part
        return part / len(bank.label)

    mean = over_images([count * each for count, each, _ in found])
    variance = over_images([count * (std.square() + (each - mean).square()) for count, each, std in found])
    mean, std = (each.to(bank.feature.device, bank.dtype) for each in (mean, variance.sqrt()))
    return mean, torch.where(std > 1e-6 * mean.abs(), std, 1)


def _fit(
    *banks: Bank, mean: Tensor, std: Tensor, num_classes: int, l2: float, max_iterations: int
) -> tuple[Tensor, Tensor]:
    """Weights [D, F, classes] and biases [D, 1, classes] of one bank, or of D draws that fit in one chunk."""
    first = banks[0]
    images, width = len(first.label), len(mean)
    parts = chunks(len(first.row), len(banks) * max(width, num_classes), mean.dtype)
    labels = [bank.label[bank.row] for bank in banks]
    solve = partial(_logistic_regression, num_classes=num_classes, l2=l2, max_iterations=max_iterations)
    if len(parts) > 1 or first.devices > 1:
        memory = mean.new_empty(1, parts[0].stop, width)  # of one chunk after the other

        def centred(rows: slice) -> tuple[Tensor, Tensor]:
            chunk = memory[:, : rows.stop - rows.start]
            return torch.sub(first.feature[rows], mean, out=chunk[0])[None], labels[0][None, rows]

        return solve(lambda: map(centred, parts), (1, images, width), scale=1 / std[:, None], bank=first)
    whole = torch.stack([(bank.feature.to(bank.dtype) - mean).div_(std) for bank in banks])
    basis = None
    if images < width:  # the best weights lie in the span of the images, so n numbers say what F would
        basis, triangle = torch.linalg.qr(whole.mT)  # [D, F, n], [D, n, n]
        whole = triangle.mT
    weight, bias = solve(lambda: [(whole, torch.stack(labels))], whole.shape)
    return weight if basis is None else basis @ weight, bias


def _logistic_regression(
    parts: Parts,
    shape: Sequence[int],
    num_classes: int,
    l2: float,
    max_iterations: int,
    scale: Tensor | None = None,
    bank: Bank | None = None,
) -> tuple[Tensor, Tensor]:
    """Solves D problems of features [D, n, F] at once; their sum is minimal where each is.

    Args:
        parts: the features and labels of this device.
        shape: D, n and F of the images of all devices.
        num_classes: see ``linear_probe``.
        l2: see ``linear_probe``.
        max_iterations: see ``linear_probe``.
        scale: factor of each feature [F, 1]; None is 1.
        bank: whose images these are, if devices share them.
    """
    problems, images, width = shape
    example, _ = next(iter(parts()))
    dtype = example.dtype
    # sums in float32 would send the line search other ways, for other chunks or numbers of devices
    exact = dtype if example.device.type == "mps" else torch.float64
    weight = example.new_zeros(problems, width, num_classes, dtype=exact)
    bias = example.new_zeros(problems, 1, num_classes, dtype=exact)
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
        inner = (weight if scale is None else weight * scale).to(dtype, copy=True).requires_grad_()
        offset = bias.to(dtype, copy=True).requires_grad_()
        slope, shift = torch.zeros_like(weight), torch.zeros_like(bias)
        value = weight.new_zeros(())
        for x, label in parts():
            logits = torch.baddbmm(offset, x, inner)  # [D, rows, classes]
            fit = F.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none")
            for total, part in zip((slope, shift), torch.autograd.grad(fit.sum(), (inner, offset)), strict=True):
                total += part
            value += fit.detach().to(exact).sum() / images
        weight.grad, bias.grad = slope / images, shift / images
        if bank is not None:
            for part in (value, weight.grad, bias.grad):
                bank.total(part)
        if scale is not None:
            weight.grad *= scale
        weight.grad += l2 / images * weight
        return value + l2 / 2 / images * weight.square().sum()

    if bank is None or bank.devices == 1:
        solver.step(objective)
    else:
        _solve_together(solver, objective, bank, weight, bias)
    return weight.to(dtype), bias.to(dtype)


def _solve_together(solver: torch.optim.LBFGS, objective: Callable[[], Tensor], bank: Bank, *variables: Tensor) -> None:
    """Has the solver of the first device choose the points at which all devices compute their part of the objective.

    A solver on every device could take another path: the number of evaluations depends on the last bit of a sum.
    """
    going = variables[0].new_ones(1)

    def everywhere() -> Tensor:
        bank.lead(going, *variables)
        return objective()

    if bank.rank == 0:
        solver.step(everywhere)
        bank.lead(going.zero_(), *variables)
        return
    while True:
        bank.lead(going, *variables)
        if not going:
            return
        objective()
