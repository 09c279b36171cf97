"""How much a recipe stores."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

_PLAIN = ("encoder", "normalize", "head")  # parts that a network has that learns no sequence


def memory(recipe: nn.Module) -> dict[str, Any]:
    """How much a recipe stores, each tensor counted once.

    Args:
        recipe: whose parameters and buffers are counted, with those of its parts.

    Returns:
        The number of ``parameters`` that learn, and the ``bytes`` of all parameters and of all buffers; ``on_top``, the
        bytes of parameters and buffers of each part that is no plain network's, by its name.
    """
    parts = {name: part for name, part in recipe.named_children() if name not in _PLAIN}
    plain = {id(tensor) for name in _PLAIN if hasattr(recipe, name) for tensor in _tensors(getattr(recipe, name))}
    stored = {
        name: sum(tensor.nbytes for tensor in _tensors(part) if id(tensor) not in plain) for name, part in parts.items()
    }
    own = {name: buffer.nbytes for name, buffer in recipe.named_buffers(recurse=False)}
    return {
        "parameters": sum(parameter.numel() for parameter in recipe.parameters() if parameter.requires_grad),
        "bytes": {
            "parameters": sum(parameter.nbytes for parameter in recipe.parameters()),
            "buffers": sum(buffer.nbytes for buffer in recipe.buffers()),
            "on_top": {name: size for name, size in (stored | own).items() if size},
        },
    }


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
