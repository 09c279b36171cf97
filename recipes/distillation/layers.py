"""Reads the outputs of named layers without changing the network."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from datamodules import Batch
from recipes.base.classifier import Classifier
from recipes.base.recipe import Recipe
from recipes.errors import nearest
from recipes.nn import Encoder, evaluating, stages

FEATURE, LOGITS = "feature", "logits"  # of the encoder, and of the classifier on top
_STAGE = "stage:"


def module_path(encoder: Encoder, layer: str) -> str:
    """Returns the path of the module of an encoder that a name means.

    Args:
        encoder: whose layer it is.
        layer: a path of a module, such as ``network.layer3``, where ``network.`` may be left out; or ``stage:2``, for
            the last layer of that stage that has weights, from 0 (``recipes.nn.stages``): maps, before the pooling.

    Raises:
        ValueError: if there is no such layer; the message names the nearest.
    """
    if layer.startswith(_STAGE):
        number, found = layer.removeprefix(_STAGE), stages(encoder)
        if not number.isdecimal() or int(number) >= len(found):
            known = ", ".join(f"{_STAGE}{i} ({stage.name})" for i, stage in enumerate(found))
            raise ValueError(f"there is no {layer!r} in this {type(encoder).__name__}; there are {known}")
        layers = found[int(number)].layers
        with_weights = [name for name in layers if any(True for _ in encoder.get_submodule(name).parameters())]
        return (with_weights or list(layers))[-1]
    names = [name for name, _ in encoder.named_modules() if name]
    for name in (layer, f"network.{layer}"):
        if name in names:
            return name
    meant = nearest(layer, [*names, *(name.removeprefix("network.") for name in names)])
    raise ValueError(
        f"there is no layer {layer!r} in this {type(encoder).__name__}{meant}: give the path of a module, "
        f"{_STAGE}<number>, {FEATURE!r} or {LOGITS!r}"
    )


@contextmanager
def watched(encoder: Encoder, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Records the outputs of layers while images pass through the encoder.

    Args:
        encoder: that is called inside.
        layers: names, as for ``module_path``.

    Yields:
        What each layer gave last, by its name.
    """
    outputs: dict[str, Tensor] = {}

    def note(name: str) -> object:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            if not isinstance(output, Tensor):
                raise ValueError(f"the layer {name!r} gives a {type(output).__name__}: name one that gives a tensor")
            outputs[name] = output

        return hook

    hooks = [
        encoder.get_submodule(module_path(encoder, name)).register_forward_hook(note(name))  # type: ignore[arg-type]
        for name in layers
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def outputs(recipe: Recipe, batch: Batch, layers: Iterable[str]) -> dict[str, Tensor]:
    """Passes images through a recipe, and returns the outputs of layers of its encoder, its features and its logits.

    Args:
        recipe: whose encoder has the layers; the features of a recipe that is no ``Classifier`` are its logits.
        batch: images [B, C, H, W], uint8 or float in [0, 1].
        layers: names, as for ``module_path``, ``feature`` or ``logits``.

    Returns:
        Each output by its name, with ``feature`` and ``logits``.
    """
    with watched(recipe.encoder, {*layers} - {FEATURE, LOGITS}) as found:
        feature = recipe(batch.image)
    logits = recipe.batch_logits(batch, feature) if isinstance(recipe, Classifier) else feature
    return {**found, FEATURE: feature, LOGITS: logits}


def shapes(
    encoder: Encoder, layers: Iterable[str], image_shape: tuple[int, ...], num_classes: int | None
) -> dict[str, tuple[int, ...]]:
    """Computes the shapes of the layers' outputs for one image, by layer name.

    Args:
        encoder: that the layers are of.
        layers: names, as for ``module_path``, ``feature`` or ``logits``.
        image_shape: channels, height and width.
        num_classes: of the logits; None where there are none.

    Raises:
        ValueError: if a layer does not exist, or gives something else than a tensor.
    """
    image = torch.zeros(2, *image_shape).to(next(encoder.parameters()))
    named = [layer for layer in layers if layer not in (FEATURE, LOGITS)]
    with torch.no_grad(), evaluating(encoder), watched(encoder, named) as outputs:
        feature = encoder(image)
    return {
        **{layer: tuple(output.shape[1:]) for layer, output in outputs.items()},
        FEATURE: tuple(feature.shape[1:]),
        **({} if num_classes is None else {LOGITS: (num_classes,)}),
    }
