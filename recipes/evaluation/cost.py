"""How much a recipe stores."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_PLAIN = ("encoder", "normalize", "head")  # parts that a network has that learns no sequence


def memory(recipe: nn.Module) -> dict[str, Any]:
    """How much a recipe stores, each tensor counted once.

    Args:
        recipe: whose parameters and buffers are counted, with those of its parts.

    Returns:
        The number of ``parameters`` that learn, and the ``bytes`` of all ``parameters``, of all ``buffers``, and of the
        images of earlier tasks that the recipe goes on reading from the ``data``; ``on_top``, the bytes of each part
        that is no plain network's, by its name.
    """
    data: int = getattr(recipe, "bytes_in_data", 0)
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
            "data": data,
            "on_top": {name: size for name, size in (stored | own | {"data": data}).items() if size},
        },
    }


def megabytes(sizes: Mapping[str, Any]) -> float:
    """Everything that a recipe stores, in MB: the sum of the ``bytes`` of ``memory``; earlier reports have no data."""
    return float(sizes["parameters"] + sizes["buffers"] + sizes.get("data", 0)) / 1e6


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
