"""Encoders that a command names in one word."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torchvision import models

import recipes
from datamodules.reading import Reading
from recipes.base.checkpoint import config_of
from recipes.base.recipe import Recipe
from recipes.errors import nearest
from recipes.nn import ConvNet, Encoder, ResNet, TimmEncoder, TorchvisionEncoder
from recipes.nn.encoders.files import BEST, LAST, about_checkpoint, read_weights
from recipes.nn.encoders.weights import checkpoint_file, with_choice

_TIMM = "timm:"
_WEIGHTS = (".pt", ".pth", ".safetensors")  # files of weights alone
_OWN: dict[str, type[ConvNet] | type[ResNet]] = {"ConvNet": ConvNet, "ResNet": ResNet}  # those for images of any size


class NamedEncoder(NamedTuple):
    """An encoder and where it is from.

    Attributes:
        encoder: encoder with its weights.
        config: ``class_path`` and ``init_args`` of the encoder, for a YAML file.
        recipe: recipe that trained the encoder, with its weights; None if the name is not a run.
    """

    encoder: Encoder
    config: dict[str, Any]
    recipe: Recipe | None = None


def reading_of_runs(names: Iterable[str | None]) -> Reading:
    """How images are read for the first encoder or file of weights that is a run; nothing is known without a run."""
    return next((read_weights(file).reading for file in _files(names)), Reading())


def taken_of_runs(names: Iterable[str | None]) -> list[str]:
    """Says in a line each which checkpoints are taken of the encoders and weights that are runs."""
    return [about_checkpoint(file) for file in _files(names) if file.name in (BEST, LAST)]


def _files(names: Iterable[str | None]) -> Iterator[Path]:
    for name in names:
        if name is not None and (file := checkpoint_file(with_choice(name)[0])) is not None:
            yield file


def named_encoder(name: str, weights: str | None = None, in_channels: int = 3) -> NamedEncoder:
    """Creates the encoder that a name on the command line means.

    Args:
        name: name of a torchvision network (``resnet18``), ``timm:<name>``, ``ConvNet`` or ``ResNet`` of
            ``recipes.nn``, or a run directory or checkpoint, whose encoder is used.
        weights: ``DEFAULT`` or another name of torchvision's weights for the network, ``DEFAULT`` for timm's, a file of
            weights or a run directory. If None, weights are random. The encoder of a run has its own weights.
        in_channels: number of channels of the images, 1 or 3.

    Returns:
        The encoder, its configuration and, for a run, its recipe.

    Raises:
        ValueError: if there is no such encoder or no such weights, the weights do not fit, or the encoder of a run
            takes images with another number of channels.
        FileNotFoundError: if ``name`` or ``weights`` is a path and nothing is there.
        ImportError: if the network is one of timm, and timm is not installed.
    """
    if checkpoint_file(name) is not None or "/" in name or Path(name).suffix in (".ckpt", *_WEIGHTS):
        return _of_run(name, weights, in_channels)
    options: dict[str, Any] = {"in_channels": in_channels}
    if name in _OWN:
        options |= {"weights": weights}
        return _made(_OWN[name], options)
    if name.startswith(_TIMM):
        options = {"name": name.removeprefix(_TIMM), **options}
        options |= {"pretrained": True} if weights == "DEFAULT" else {"weights": weights}
        return _made(TimmEncoder, options)
    if name not in (known := models.list_models(module=models)):
        raise ValueError(
            f"there is no encoder {name!r}{nearest(name, [*known, *_OWN])}: give the name of a network of torchvision, "
            f"timm:<name>, {' or '.join(_OWN)}, or the directory or a checkpoint of a run"
        )
    return _made(TorchvisionEncoder, {"name": name, **options, "weights": weights})


def _made(kind: Any, options: dict[str, Any]) -> NamedEncoder:
    options = {option: value for option, value in options.items() if value is not None}
    return NamedEncoder(kind(**options), {"class_path": f"recipes.nn.{kind.__name__}", "init_args": options})


def _of_run(path: str, weights: str | None, in_channels: int) -> NamedEncoder:
    if weights is not None:
        raise ValueError(f"the encoder of {path} has its own weights: leave out the weights {weights}")
    if Path(path).suffix in _WEIGHTS:
        raise ValueError(f"{path} holds weights alone: name their network, and give the file as its weights")
    recipe = recipes.load(path)
    encoder = recipe.encoder
    if encoder.in_channels != in_channels:
        raise ValueError(
            f"the images have {in_channels} channels, the encoder of {path} takes {encoder.in_channels}: choose other "
            "images or another encoder"
        )
    config = config_of(str(checkpoint_file(path)), ["model"])["model"]["init_args"]["encoder"]
    config["init_args"] = {**config["init_args"], "weights": path}
    if config["init_args"].get("pretrained"):  # of timm: these would be fetched in vain
        config["init_args"]["pretrained"] = False
    return NamedEncoder(encoder, config, recipe)
