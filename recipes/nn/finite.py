"""Whether weights are finite: neither NaN nor infinite."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def largest(tensors: Iterable[Tensor]) -> Tensor:
    """The largest element of all tensors, on their device: NaN if an element is NaN, infinite if one is +inf.

    No value is copied to the host, so that a GPU is not waited for.
    """
    given = [x.detach() for x in tensors if x.is_floating_point() and x.numel()]
    if not given:
        return torch.tensor(0.0)
    return torch.stack([x.float() for x in torch._foreach_max(given)]).max()


def not_finite(tensors: Mapping[str, Any]) -> list[str]:
    """The names in a ``state_dict`` of the tensors with an element that is NaN or infinite.

    A vector may hold -inf: as the bias of a class it says that this class is never predicted.
    """
    floats = {name: x for name, x in tensors.items() if isinstance(x, Tensor) and x.is_floating_point()}
    return [name for name, x in floats.items() if not _is_finite(x)]


def listed(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_finite(x: Tensor) -> bool:
    if x.itemsize == 1:
        x = x.float()  # torch does not look into floats of 8 bits
    finite = x.isfinite()
    return bool(finite.all() if x.ndim > 1 else (finite | x.isneginf()).all())
