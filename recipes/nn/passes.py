"""Ways to pass images through a network: in eval mode for a while, and in micro-batches."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

Tensors = TypeVar("Tensors", bound=tuple[Any, ...])


def in_micro_batches(function: Callable[[Tensors], Tensor], batch: Tensors, size: int | None) -> Tensor:
    """Applies a function to every image, with the activations of only ``size`` images in memory at a time.

    What a loss over the whole batch sends back is exact: in the backward pass the micro-batches are computed again,
    one after the other, each with its part of the gradient (gradient caching: Gao et al., 2021, arXiv:2101.06983,
    Section 3). This costs a second forward pass. Random numbers have to be the same in both, as those of a ``Key`` are.

    Args:
        function: from a batch of b images to [..., b, F]; what it gives for one image must not depend on the others,
            so batch norm has no place in it (see ``sees_the_batch``).
        batch: a named tuple of tensors [B, ...].
        size: of the micro-batches, > 0; None computes the batch at once.

    Returns:
        [..., B, F], the same as ``function(batch)``.
    """
    if size is None or size >= len(batch[0]):
        return function(batch)
    dtype = torch.get_default_dtype()  # of the Trainer's precision, which holds in the forward pass alone
    contexts = lambda: (nullcontext(), _default_dtype(dtype))  # noqa: E731
    parts = [type(batch)(*part) for part in zip(*(field.split(size) for field in batch))]
    outputs = [checkpoint(function, part, use_reentrant=False, context_fn=contexts) for part in parts]
    return torch.cat(outputs, dim=-2)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def sees_the_batch(module: nn.Module) -> bool:
    """Whether the output of a module for an image depends on other images: whether it has batch norm in training."""
    return any(isinstance(part, _BatchNorm) and part.training for part in module.modules())


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Puts a module into eval mode for a while; afterwards every submodule is in the mode it was in before."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for submodule, mode in modes.items():
            submodule.training = mode
