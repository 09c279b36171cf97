"""The forms in which ``recipes export`` writes a model: a program of torch, ONNX, and weights for torchvision."""

import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision import models

from recipes.base.classifier import Classifier
from recipes.base.recipe import Recipe
from recipes.nn import MultiHead, TorchvisionEncoder

_BATCH = 4  # images of the traced call


class Model(nn.Module):
    """Maps images to what is exported of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, image: Tensor) -> Tensor:
        """Returns logits or scores [B, classes] of a classifier, and features [B, F] of other recipes."""
        return self.recipe.classify(image) if isinstance(self.recipe, Classifier) else self.recipe(image)


def output_name(recipe: Recipe) -> str:
    """The name of what is exported of a recipe."""
    if not isinstance(recipe, Classifier):
        return "features"
    return "logits" if recipe.has_probabilities else "scores"


def program_of(recipe: Recipe, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The recipe as a graph, without the weights that it uses for training alone, as those of a projector."""
    model = Model(copy.deepcopy(recipe))
    program = _traced(model, shape)
    places = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for place in program.graph_signature.input_specs:
        if place.target is not None and not places[place.arg.name].users:
            module, _, name = place.target.rpartition(".")
            setattr(model.get_submodule(module), name, None)
    return _traced(model, shape)


def _traced(model: Model, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    images = torch.rand(_BATCH, *shape)
    try:
        with _quiet():
            return torch.export.export(model, (images,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}})
    except Exception as error:  # of many kinds, for code that has no graph or is made for one number of images
        raise ValueError(
            f"torch.export has no program for {named(model.recipe)} and any number of images ({_reason(error)}); "
            "--formats safetensors exports the weights alone"
        ) from error


def write_onnx(program: torch.export.ExportedProgram, path: Path, recipe: Recipe) -> None:
    """Writes a program as one ONNX file.

    Raises:
        ValueError: if the recipe has an operation without ONNX form.
    """
    try:
        with _quiet():
            torch.onnx.export(
                program,
                f=path,
                input_names=["image"],
                output_names=[output_name(recipe)],
                external_data=False,  # one file
                verbose=False,
            )
    except Exception as error:  # of many kinds, for operations that have no ONNX form
        raise ValueError(
            f"ONNX has no form for {named(recipe)} ({_reason(error)}); --formats torch safetensors exports the other "
            "formats"
        ) from error


def named(recipe: Recipe) -> str:
    """Names a recipe and its encoder."""
    return f"{type(recipe).__name__} with {type(recipe.encoder).__name__}"


def _reason(error: BaseException) -> str:
    """The first line of the first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def onnx_session(path: Path) -> Callable[[Tensor], Tensor]:
    """Loads an ONNX file as a function from images to outputs."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def write_weights(network: nn.Module, path: Path, recipe: Recipe) -> None:
    """Writes the weights of a network with the normalisation of its images, and has it take those of the file."""
    from safetensors.torch import load_file, save

    known = recipe.normalize.known or ()
    notes = {name: json.dumps(numbers[: recipe.encoder.in_channels]) for name, numbers in zip(("mean", "std"), known)}
    path.write_bytes(save(network.state_dict(), notes))
    network.load_state_dict(load_file(path))


def plain_network(recipe: Recipe) -> nn.Sequential:
    """The normalisation, and torchvision's network with the weights of encoder and head.

    Raises:
        ValueError: if the model is no network of torchvision, with the reason.
    """
    encoder = recipe.encoder
    name = type(encoder).__name__
    if not isinstance(recipe, Classifier) or not isinstance(encoder, TorchvisionEncoder):
        raise ValueError(f"{named(recipe)} is no network of torchvision")
    architecture = encoder.made_with["name"]
    size = {option: value for option, value in encoder.made_with.items() if option == "image_size" and value}
    top = recipe.head.joined() if isinstance(recipe.head, MultiHead) else recipe.head
    network = models.get_model(architecture, weights=None, num_classes=top.out_features, **size)
    try:
        missing, unexpected = network.load_state_dict(encoder.network.state_dict(), strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"the first convolution of this {name} is not that of torchvision's {architecture} (stem or in_channels)"
        ) from error
    layer = missing[0].rpartition(".")[0] if missing else ""
    head = network.get_submodule(layer)
    if unexpected or set(missing) != {f"{layer}.weight", f"{layer}.bias"} or not isinstance(head, nn.Linear):
        raise ValueError(f"the layers of this {name} are not those of torchvision's {architecture}")
    if head.weight.shape != top.weight.shape:
        raise ValueError(f"the classifier does not read the last features of torchvision's {architecture}")
    head.load_state_dict(top.state_dict())
    return nn.Sequential(recipe.normalize, network).eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """Leaves out what the exporters tell their own authors."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)
