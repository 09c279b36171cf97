"""Log-sum-exps over all pairs of vectors, in memory that grows with the number of vectors and not with its square.

Contrastive losses are means of them, less the logit of the positive. The matrix of logits is made in tiles, each of
which is dropped after use and recomputed for the gradient (Cheng et al., 2024, arXiv:2410.17243, Section 3.1).
"""

from collections.abc import Iterator
from itertools import combinations_with_replacement, product
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from losses.precision import at_least_float32


@torch.compiler.disable  # a compiler would unroll the loop over the tiles
def streamed_logsumexp(anchors: Tensor, keys: Tensor, scale: float, exclude: Tensor | None = None) -> Tensor:
    """Computes log Σⱼ exp(scale · aᵢ·kⱼ) over all keys for every anchor.

    In float32, or float64 for float64 input. Anchors and keys get gradients, and only where they require them.

    Args:
        anchors: vectors [A, D].
        keys: vectors [K, D].
        scale: of the inner products: 1 / temperature.
        exclude: the row in ``keys`` of the one key that each anchor leaves out, int64 [A]; None leaves out none.

    Returns:
        The logarithms [A]; -inf, without gradient, where no key is left.
    """
    return _OverKeys.apply(at_least_float32(anchors), at_least_float32(keys), scale, exclude)


@torch.compiler.disable
def streamed_logsumexp_of_others(vectors: Tensor, scale: float) -> Tensor:
    """Computes log Σⱼ exp(scale · vᵢ·vⱼ) over all j but i, in half the time of ``streamed_logsumexp``.

    Args:
        vectors: anchors and keys at once [A, D].
        scale: of the inner products: 1 / temperature.

    Returns:
        The logarithms [A]; -inf, without gradient, where there are no others.
    """
    return _OverOthers.apply(at_least_float32(vectors), scale)


# Sums are kept as logarithms, and every tile is summed relative to its own maxima, which is right for all logits. Sums
# of exp(logit - scale), the most that unit vectors reach, need half the exponentials and a seventh less time, but
# underflow in float32 where all keys are opposite and the temperature is below 0.023.


class _OverKeys(Function):
    @staticmethod
    def forward(ctx: Any, anchors: Tensor, keys: Tensor, scale: float, exclude: Tensor | None) -> Tensor:
        total = anchors.new_full((len(anchors),), -torch.inf)
        for i, j in _pairs_of_tiles(anchors, keys):
            logits = _logits(anchors[i], keys[j], scale)
            if exclude is not None:
                _leave_out(logits, exclude[i] - j.start)
            total[i] = torch.logaddexp(total[i], logits.logsumexp(1))
        ctx.save_for_backward(anchors, keys, exclude, _finite(total))
        ctx.scale = scale
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        anchors, keys, exclude, total = ctx.saved_tensors
        grad_anchors = torch.zeros_like(anchors) if ctx.needs_input_grad[0] else None
        grad_keys = torch.zeros_like(keys) if ctx.needs_input_grad[1] else None
        grad = grad * ctx.scale
        for i, j in _pairs_of_tiles(anchors, keys):
            logits = _logits(anchors[i], keys[j], ctx.scale)
            if exclude is not None:
                _leave_out(logits, exclude[i] - j.start)
            weight = logits.sub_(total[i, None]).exp_().mul_(grad[i, None])
            if grad_anchors is not None:
                grad_anchors[i].addmm_(weight, keys[j])
            if grad_keys is not None:
                grad_keys[j].addmm_(weight.T, anchors[i])
        return grad_anchors, grad_keys, None, None


class _OverOthers(Function):
    """Logits are symmetric: the tiles on and above the diagonal stand for those below."""

    @staticmethod
    def forward(ctx: Any, vectors: Tensor, scale: float) -> Tensor:
        total = vectors.new_full((len(vectors),), -torch.inf)
        for i, j in combinations_with_replacement(_tiles(vectors), 2):
            logits = _logits(vectors[i], vectors[j], scale)
            if i == j:
                logits.fill_diagonal_(-torch.inf)
            else:
                total[j] = torch.logaddexp(total[j], logits.logsumexp(0))
            total[i] = torch.logaddexp(total[i], logits.logsumexp(1))
        ctx.save_for_backward(vectors, _finite(total))
        ctx.scale = scale
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        vectors, total = ctx.saved_tensors
        grad_vectors = torch.zeros_like(vectors)
        grad = grad * ctx.scale
        for i, j in combinations_with_replacement(_tiles(vectors), 2):
            logits = _logits(vectors[i], vectors[j], ctx.scale)
            if i == j:
                logits.fill_diagonal_(-torch.inf)
            weight = (logits - total[i, None]).exp_().mul_(grad[i, None])  # j as a key of i
            weight.addcmul_(logits.sub_(total[j]).exp_(), grad[j])  # i as a key of j
            grad_vectors[i].addmm_(weight, vectors[j])
            if i != j:
                grad_vectors[j].addmm_(weight.T, vectors[i])
        return grad_vectors, None


def _tiles(vectors: Tensor, size: int | None = None) -> list[slice]:
    size = size or _tile_size(vectors)
    return [slice(start, start + size) for start in range(0, len(vectors), size)]


def _pairs_of_tiles(anchors: Tensor, keys: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of tiles of one area: the fewer rows there are, the more columns a tile has."""
    side = _tile_size(anchors)
    rows = max(1, min(len(anchors), side))
    columns = max(1, min(len(keys), side * side // rows))
    return product(_tiles(anchors, side * side // columns), _tiles(keys, columns))


def _tile_size(vectors: Tensor) -> int:
    """512 x 512 fits a core's cache; elsewhere, starting a kernel costs more than memory."""
    return 512 if vectors.device.type == "cpu" else 2048


def _logits(anchors: Tensor, keys: Tensor, scale: float) -> Tensor:
    with torch.autocast(anchors.device.type, enabled=False):
        return (anchors * scale) @ keys.T


def _leave_out(logits: Tensor, column: Tensor) -> None:
    """Sets one column per row to -inf, unless it is outside of the tile."""
    nearest = column.clamp(0, logits.shape[1] - 1)
    drop = torch.where(column == nearest, -torch.inf, 0.0).to(logits.dtype)
    logits.scatter_add_(1, nearest[:, None], drop[:, None])


def _finite(total: Tensor) -> Tensor:
    """So that a logit of -inf less a total of -inf is no nan."""
    return total.clamp(min=torch.finfo(total.dtype).min)
