"""The stages of a network, from the first layers to the last; each can be frozen, fine-tuned or retrained."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from recipes.nn.encoders.base import Encoder
from recipes.optim import NORM_LAYERS

_FEWEST = 4  # layers below which the largest is taken apart
_MOST = 0.9  # of a part's weights: if one of its own parts has more, it is a frame around that


class Stage(NamedTuple):
    """Neighbouring layers of an encoder.

    Attributes:
        name: of its first layer in the encoder.
        layers: names of its layers in the encoder.
    """

    name: str
    layers: tuple[str, ...]


def stages(encoder: Encoder) -> list[Stage]:
    """The stages of an encoder, in the order in which images pass them.

    They are the parts that its network is made of, such as ``conv1`` and ``layer1`` to ``layer4`` of a ResNet. Of fewer
    than four parts the largest sequence is taken apart: ``features`` of a VGG, or the blocks of a vision transformer. A
    norm layer, or a part without parameters, belongs to the stage before it. An encoder may say itself with which parts
    stages begin (``first_of_stages``), as ``recipes.nn.ResNet`` does.

    Args:
        encoder: whose network lists its layers in the order in which it uses them, as all of torchvision do.

    Returns:
        At least one stage.
    """
    parts = _opened(encoder)
    firsts = getattr(encoder, "first_of_stages", None) or [name for name, part in parts if _is_layer(part)]
    found: list[list[str]] = []
    for name, _ in parts:
        if not found or (name in firsts and any(_is_layer(encoder.get_submodule(other)) for other in found[-1])):
            found.append([])
        found[-1].append(name)
    return [Stage(names[0].removeprefix("network."), tuple(names)) for names in found]


def stage_of_state(encoder: Encoder) -> dict[str, int]:
    """The number of the stage, from 0, of each entry of an encoder's state_dict, by name.

    What is outside of all stages, such as position embeddings, belongs to the first.
    """
    prefixes = {f"{layer}.": number for number, stage in enumerate(stages(encoder)) for layer in stage.layers}
    return {
        name: next((number for prefix, number in prefixes.items() if name.startswith(prefix)), 0)
        for name in encoder.state_dict()
    }


def stage_features(encoder: Encoder, image: Tensor) -> list[Tensor]:
    """Computes the features of each stage of an encoder in one pass.

    Args:
        encoder: of whose stages.
        image: normalised float images [B, C, H, W].

    Returns:
        For each stage [B, F]: the mean of its output over all places of an image, or over its tokens; for the last, the
        features of the encoder. An output of four dimensions counts as [B, H, W, F] where the second and third are
        equal and the fourth is not, as in Swin transformers, else as [B, F, H, W].
    """
    with watched_stages(encoder) as watched:
        feature = encoder(image)
    return [*watched[:-1], feature]


@contextmanager
def watched_stages(encoder: Encoder) -> Iterator[list[Tensor]]:
    """Reads the features of ``stage_features`` from a pass that the caller makes.

    Args:
        encoder: that is called inside.

    Yields:
        A list, empty before the first pass; then with the features [B, F] of each stage in the last pass.
    """
    found: list[Tensor] = []
    outputs: dict[int, Tensor] = {}
    all_stages = stages(encoder)

    def keep(number: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            outputs[number] = output

        return hook

    def end(module: nn.Module, args: Any, feature: Tensor) -> None:
        found[:] = [*(_pooled(outputs[number]) for number in range(len(all_stages) - 1)), feature]
        outputs.clear()

    hooks = [
        encoder.get_submodule(layer).register_forward_hook(keep(number))
        for number, stage in enumerate(all_stages)
        for layer in stage.layers
    ]
    hooks.append(encoder.register_forward_hook(end))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _opened(encoder: Encoder) -> list[tuple[str, nn.Module]]:
    """The parts of an encoder's network; if there are too few, the largest sequential part is split."""
    parts = [(f"network.{name}", part) for name, part in encoder.network.named_children()]
    parts = parts or [("network", encoder.network)]
    while sum(_is_layer(part) for _, part in parts) < _FEWEST:
        lists = [number for number, (_, part) in enumerate(parts) if _is_list(part)]
        if not lists:
            break
        place = max(lists, key=lambda number: _weights(parts[number][1]))
        name, part = parts[place]
        parts[place : place + 1] = [(f"{name}.{child}", module) for child, module in part.named_children()]
    return parts


def _is_list(part: nn.Module) -> bool:
    """Whether it is a sequence of layers, or little more than one; a residual block or attention is neither."""
    children = [_weights(child) for child in part.children()]
    named = isinstance(part, nn.Sequential | nn.ModuleList)
    return bool(children) and (named or max(children) > _MOST * _weights(part)) and _weights(part) > 0


def _is_layer(part: nn.Module) -> bool:
    """Whether it has parameters other than those of norm layers."""
    own = (module for module in part.modules() if not isinstance(module, NORM_LAYERS))
    return any(list(module.parameters(recurse=False)) for module in own)


def _weights(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _pooled(output: Tensor) -> Tensor:
    if output.ndim == 4:
        height, width, last = output.shape[1:]
        return output.mean((1, 2)) if height == width != last else output.mean((2, 3))
    return output.mean(1) if output.ndim == 3 else output
