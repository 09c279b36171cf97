"""What the measurement of an encoder costs beside its training, and which smaller protocol costs less.

Costs are counted in floating-point operations, not in seconds, so that a run has one result on every machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from recipes.nn import evaluating

FREE = 6e10
"""Operations that a run may always spend: a few seconds of a CPU core."""

_TRAINING = 3  # passes that a training step counts for: forward, and backward to inputs and to weights
_EVALUATIONS = 125  # of the objective, in 100 iterations of L-BFGS
_PER_LOGIT = 64  # operations of softmax and cross-entropy
_PER_SIMILARITY = 16  # of finding the largest
_POINT = 1e8  # operations of t-SNE for each point: 3 s for 1,000 points
_FEWEST = 500  # images of a bank that is reduced


@dataclass(frozen=True)
class Task:
    """What is measured.

    Attributes:
        bank: number of labelled training images.
        test: number of images to classify.
        classes: number of classes.
        widths: numbers of features of the rows of the table: the encoder's own, and those of its references.
        forward: operations of the encoder for one image.
        passes: number of rows whose features are computed by a pass of the encoder's size.
    """

    bank: int
    test: int
    classes: int
    forward: float
    widths: tuple[int, ...]
    passes: int = 1


@dataclass(frozen=True)
class Plan:
    """How much of a protocol is carried out.

    Attributes:
        every: step between the images of the bank that are used, 1 for all.
        draws: number of draws of few labels.
        rows: number of rows of the table, from the encoder's own on.
        few_labels: numbers of labels per class of the columns with few labels.
        cost: operations.
    """

    every: int
    draws: int
    rows: int
    few_labels: tuple[int, ...]
    cost: float = 0.0


def forward_operations(encoder: nn.Module, shape: Sequence[int]) -> float:
    """Counts the multiplications and additions of an encoder for one image of the shape [C, H, W]."""
    device = next((x.device for x in encoder.parameters()), torch.device("cpu"))
    dtype = next((x.dtype for x in encoder.parameters()), torch.float32)
    with torch.no_grad(), evaluating(encoder), FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, *shape, device=device, dtype=dtype))
    return float(counter.get_total_flops())


def training_operations(images: int, forward: float) -> float:
    """Operations of a training that sees so many images, one view of each: a lower bound."""
    return _TRAINING * images * forward


def cost(task: Task, plan: Plan) -> float:
    """Operations of a measurement."""
    bank, total = -(-task.bank // plan.every), 0.0
    total += min(task.passes, plan.rows) * task.forward * (bank + task.test)
    for width in task.widths[: plan.rows]:
        total += _linear(bank, task, width) + _knn(bank, task, width)
        for labels in plan.few_labels:
            images = labels * task.classes
            total += plan.draws * (_linear(images, task, width) + _knn(images, task, width))
    return total


def affordable(task: Task, budget: float, draws: int, few_labels: Sequence[int]) -> Plan:
    """The fullest protocol that a budget suffices for.

    What is left out, in this order: draws of few labels, references from the last on, columns with few labels, and
    images of the bank. At least 500 images of the bank remain, or two for each class.

    Args:
        task: what is measured.
        budget: in operations; infinite for the full protocol.
        draws: number of draws of few labels.
        few_labels: numbers of labels per class of the columns with few labels.
    """
    plans = list(_smaller(Plan(1, draws, len(task.widths), tuple(few_labels)), task))
    plan = next((plan for plan in plans if cost(task, plan) <= budget), plans[-1])
    return replace(plan, cost=cost(task, plan))


def points_of_map(budget: float, most: int) -> int:
    """The number of points of a t-SNE map that a budget suffices for, at least 100 if so many are wanted."""
    return min(most, max(100, int(min(budget / _POINT, most))))


def _smaller(plan: Plan, task: Task) -> Iterator[Plan]:
    for rows in range(plan.rows, 0, -1):
        for draws in (plan.draws, *(fewer for fewer in (10, 5, 3) if fewer < plan.draws)):
            yield replace(plan, rows=rows, draws=draws)
    for rows in range(plan.rows, 0, -1):
        yield replace(plan, rows=rows, few_labels=())
    fewest = max(_FEWEST, 2 * task.classes)
    for every in range(2, max(2, task.bank // fewest) + 1):
        yield replace(plan, rows=1, few_labels=(), every=every)


def _linear(images: int, task: Task, width: int) -> float:
    narrow = min(images, width)
    reduction = 2.0 * images * images * width if images < width else 0.0
    fit = _EVALUATIONS * float(images) * task.classes * (4 * narrow + _PER_LOGIT)
    return fit + reduction + 2.0 * task.test * width * task.classes


def _knn(images: int, task: Task, width: int) -> float:
    return float(images) * task.test * (2 * width + _PER_SIMILARITY)
