"""``recipes export``: the model of a run in files that need nothing of this project."""

import argparse
import copy
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from datamodules.reading import LARGEST_SIZE, Reading
from datamodules.sources.decode import described
from recipes.base.checkpoint import checkpoint_path, load
from recipes.base.classifier import Classifier
from recipes.base.recipe import Recipe
from recipes.cli.arguments import IMPORT_HELP
from recipes.continual.answers import ContinualClassifier
from recipes.evaluation.tables import versions
from recipes.nn import MultiHead, TorchvisionEncoder

FORMATS = ("torch", "onnx", "safetensors")
_PACKAGES = {"torch": (), "onnx": ("onnx", "onnxscript", "onnxruntime"), "safetensors": ("safetensors",)}
_SAME_OPERATIONS = 1e-6  # largest difference of the outputs that is allowed, over the largest output
_OTHER_LIBRARY = 1e-4  # whose convolutions add up in another order, in float32
_BATCH = 4  # images that a check sees at once


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: the options, such as ["--ckpt_path", "runs/finetune-folder/<time>"].

    Raises:
        ValueError: if an option is wrong; also what ``export`` raises.
    """
    parser = _Parser(prog="recipes export", description="Writes the model of a run to files for other programs.")
    parser.add_argument("--ckpt_path", required=True, help="run directory or checkpoint")
    parser.add_argument("--output", help="folder for the files; by default export/ in the run directory")
    about = "formats to write: torch (model.pt2), onnx (model.onnx), safetensors (weights of encoder and model); "
    about += "by default all"
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), help=about)
    about = "height and width of the images in pixels, > 0; by default those of the images of the run"
    parser.add_argument("--image_size", type=int, help=about)
    about = "task of the images, from 1, for a network that was trained in the scenario task: the files predict the "
    about += "classes of this task only; by default those of all tasks"
    parser.add_argument("--task", type=int, help=about)
    parser.add_argument("--import", help=IMPORT_HELP)  # taken out of the arguments before: here for the help
    parser.allow_abbrev = False
    options = parser.parse_args(args)
    folder = export(options.ckpt_path, options.output, options.formats, options.image_size, options.task)
    for name, difference in json.loads((folder / "export.json").read_text())["largest_difference"].items():
        sys.stdout.write(f"{folder / name}: same outputs as the run, to {difference:.0e}\n")


def export(
    ckpt_path: str | Path,
    output: str | Path | None = None,
    formats: Sequence[str] = FORMATS,
    image_size: int | None = None,
    task: int | None = None,
) -> Path:
    """Writes the model of a run to files that need nothing of this project, and checks each of them.

    ``model.pt2`` (``torch.export.load``) and ``model.onnx`` map float32 images [B, C, H, W] in [0, 1], B of any size,
    to the logits [B, classes]; a recipe that is no ``Classifier``, such as SimCLR, gives features [B, F] in their
    place, and one without probabilities, such as an SVM or ICaRL, scores. The normalisation is inside.
    ``encoder.safetensors`` holds the weights of the encoder by the names that torchvision or timm have for them, so
    that ``torchvision.models.resnet18().load_state_dict(safetensors.torch.load_file(file), strict=False)`` misses the
    last layer alone. Where the whole model is a network of torchvision, ``model.safetensors`` has that layer too, for
    ``resnet18(num_classes=...)``; these two want normalised images. Both state mean and standard deviation, so that an
    encoder with one of them as its ``weights`` normalises images in the same way. ``export.json`` says what the files
    take and give: names of the classes, mean and standard deviation, shape of an image, and the steps from a picture
    to an image.

    Each file is loaded again, and its outputs are compared with those of the recipe for noise and smooth pictures, one
    image and a batch at a time. Nothing is left behind if one differs.

    Args:
        ckpt_path: directory of a run, or a checkpoint.
        output: folder for the files, which replace those of the same names. None is ``export`` in the directory of the
            run.
        formats: which of ``torch``, ``onnx`` and ``safetensors`` to write.
        image_size: height and width of the images, > 0. None takes those of the images that the run was made with.
        task: number of the task of the images, from 1, for a network that was trained in the scenario ``task``. The
            logits of other tasks' classes are then -inf. If None, the logits of all tasks' classes are exported.

    Returns:
        The folder with the files.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ValueError: if neither the checkpoint nor ``image_size`` gives the size of the images, if the
            encoder does not take such images, if the recipe has no such task or no form in one of the formats, or if
            a file gives other outputs than the recipe.
        ImportError: if a package of the extra ``export`` is not installed.
    """
    for name in formats:
        _require(_PACKAGES[name])
    path = checkpoint_path(ckpt_path)
    run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
    folder = Path(output) if output is not None else run / "export"
    recipe = load(path).of_task(task).to(memory_format=torch.contiguous_format)
    if isinstance(recipe, ContinualClassifier):
        recipe.tell_choice()
    shape = _image_shape(recipe, path, image_size)
    pictures = _pictures(shape)
    expected = _outputs(recipe, pictures)
    differences: dict[str, float] = {}

    def check(name: str, exported: Callable[[Tensor], Tensor], allowed: float) -> None:
        differences[name] = _difference(exported, pictures, expected)
        if not differences[name] <= allowed:
            raise ValueError(
                f"{name} gives other outputs than the recipe: they differ by {differences[name]:.1e} of the largest, "
                f"and {allowed:.0e} is allowed; nothing was written"
            )

    existing = next(parent for parent in folder.absolute().parents if parent.is_dir())
    with TemporaryDirectory(dir=existing, prefix=".export") as temporary:
        parts = Path(temporary)
        if {"torch", "onnx"} & set(formats):
            program = _program(recipe, shape)
            if "torch" in formats:
                torch.export.save(program, parts / "model.pt2")
                check("model.pt2", torch.export.load(parts / "model.pt2").module(), _SAME_OPERATIONS)
            if "onnx" in formats:
                _write_onnx(program, parts / "model.onnx", recipe)
                check("model.onnx", _onnx_session(parts / "model.onnx"), _OTHER_LIBRARY)
        if "safetensors" in formats:
            _write_weights(recipe.encoder.network, parts / "encoder.safetensors", recipe)
            check("encoder.safetensors", lambda image: _outputs(recipe, [image])[0], _SAME_OPERATIONS)
            plain = _plain_network(recipe)
            if plain is not None and _difference(plain, pictures, expected) <= _SAME_OPERATIONS:
                _write_weights(plain[-1], parts / "model.safetensors", recipe)
                check("model.safetensors", plain, _SAME_OPERATIONS)
        report = _report(recipe, shape, formats, differences)
        (parts / "export.json").write_text(json.dumps(report, indent=2) + "\n")
        folder.mkdir(parents=True, exist_ok=True)
        for file in parts.iterdir():
            file.replace(folder / file.name)
    return folder


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see recipes export --help")


class _Model(nn.Module):
    """Maps images to what is exported of a recipe."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, image: Tensor) -> Tensor:
        return self.recipe.classify(image) if isinstance(self.recipe, Classifier) else self.recipe(image)


def _output(recipe: Recipe) -> str:
    """The name of what is exported of a recipe."""
    if not isinstance(recipe, Classifier):
        return "features"
    return "logits" if recipe.has_probabilities else "scores"


def _require(packages: Sequence[str]) -> None:
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(
                f"this export needs {package}: pip install 'training-recipes[export]', or leave out its format"
            ) from error


def _image_shape(recipe: Recipe, path: Path, image_size: int | None) -> tuple[int, ...]:
    if image_size is not None:
        if not 1 <= image_size <= LARGEST_SIZE:
            raise ValueError(f"image_size is {image_size}: it must be at least 1 and at most {LARGEST_SIZE}")
        return recipe.encoder.in_channels, image_size, image_size
    if recipe.image_shape is None:
        raise ValueError(f"{path} has no image size: give --image_size")
    return recipe.image_shape


def _pictures(shape: tuple[int, ...]) -> list[Tensor]:
    """One image and a batch, in [0, 1]: noise, and smooth pictures as photographs rather are."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(_BATCH // 2 + 1, *shape, generator=generator)
    coarse = torch.rand(_BATCH // 2, shape[0], 4, 4, generator=generator)
    smooth = F.interpolate(coarse, shape[1:], mode="bilinear", align_corners=False)
    return [noise[:1], torch.cat([noise[1:], smooth])]


@torch.no_grad()
def _outputs(recipe: Recipe, pictures: list[Tensor]) -> list[Tensor]:
    """What the recipe itself gives."""
    model = _Model(recipe)
    try:
        return [model(picture) for picture in pictures]
    except (RuntimeError, ValueError) as error:
        height, width = pictures[0].shape[2:]
        raise ValueError(
            f"{type(recipe.encoder).__name__} cannot take images of {height} × {width} pixels: give another "
            f"--image_size ({str(error).splitlines()[0]})"
        ) from error


@torch.no_grad()
def _difference(model: Callable[[Tensor], Tensor], pictures: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of the outputs over the largest output; where both are infinite there is none."""
    differences = []
    for picture, output in zip(pictures, expected):
        given = model(picture)
        largest = output.nan_to_num(posinf=0, neginf=0).abs().max()
        differences.append(torch.where(given == output, 0, (given - output).abs()).max() / largest)
    return torch.stack(differences).max().item()


def _program(recipe: Recipe, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """The recipe as a graph, without the weights that it uses for training alone, as those of a projector."""
    model = _Model(copy.deepcopy(recipe))
    program = _traced(model, shape)
    places = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    for place in program.graph_signature.input_specs:
        if place.target is not None and not places[place.arg.name].users:
            module, _, name = place.target.rpartition(".")
            setattr(model.get_submodule(module), name, None)
    return _traced(model, shape)


def _traced(model: _Model, shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    images = torch.rand(_BATCH, *shape)
    try:
        with _quiet():
            return torch.export.export(model, (images,), dynamic_shapes={"image": {0: torch.export.Dim("batch")}})
    except Exception as error:  # of many kinds, for code that has no graph or is made for one number of images
        raise ValueError(
            f"torch.export has no program for {_named(model.recipe)} and any number of images ({_reason(error)}); "
            "--formats safetensors exports the weights alone"
        ) from error


def _write_onnx(program: torch.export.ExportedProgram, path: Path, recipe: Recipe) -> None:
    try:
        with _quiet():
            torch.onnx.export(
                program,
                f=path,
                input_names=["image"],
                output_names=[_output(recipe)],
                external_data=False,  # one file
                verbose=False,
            )
    except Exception as error:  # of many kinds, for operations that have no ONNX form
        raise ValueError(
            f"ONNX has no form for {_named(recipe)} ({_reason(error)}); --formats torch safetensors exports the other "
            "formats"
        ) from error


def _named(recipe: Recipe) -> str:
    return f"{type(recipe).__name__} with {type(recipe.encoder).__name__}"


def _reason(error: BaseException) -> str:
    """The first line of the first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _onnx_session(path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


def _write_weights(network: nn.Module, path: Path, recipe: Recipe) -> None:
    """Writes the weights of a network with the normalisation of its images, and has it take those of the file."""
    from safetensors.torch import load_file, save

    known = recipe.normalize.known or ()
    notes = {name: json.dumps(numbers[: recipe.encoder.in_channels]) for name, numbers in zip(("mean", "std"), known)}
    path.write_bytes(save(network.state_dict(), notes))
    network.load_state_dict(load_file(path))


def _plain_network(recipe: Recipe) -> nn.Sequential | None:
    """The normalisation, and torchvision's network with the weights of encoder and head; None where they do not fit."""
    encoder = recipe.encoder
    if not isinstance(recipe, Classifier) or not isinstance(encoder, TorchvisionEncoder):
        return None
    size = {name: value for name, value in encoder.made_with.items() if name == "image_size" and value}
    top = recipe.head.joined() if isinstance(recipe.head, MultiHead) else recipe.head
    network = models.get_model(encoder.made_with["name"], weights=None, num_classes=top.out_features, **size)
    try:
        missing, unexpected = network.load_state_dict(encoder.network.state_dict(), strict=False)
    except RuntimeError:  # another first convolution
        return None
    layer = missing[0].rpartition(".")[0] if missing else ""
    head = network.get_submodule(layer)
    if unexpected or set(missing) != {f"{layer}.weight", f"{layer}.bias"} or not isinstance(head, nn.Linear):
        return None
    if head.weight.shape != top.weight.shape:  # reads another stage
        return None
    head.load_state_dict(top.state_dict())
    return nn.Sequential(recipe.normalize, network).eval()


def _report(
    recipe: Recipe, shape: tuple[int, ...], formats: Sequence[str], differences: dict[str, float]
) -> dict[str, Any]:
    classes = [*recipe.class_names] if isinstance(recipe, Classifier) else []
    return {
        "recipe": type(recipe).__name__,
        "encoder": type(recipe.encoder).__name__,
        "input": "float32 [B, C, H, W] in [0, 1]",
        "image_shape": list(shape),
        "picture": _picture(recipe, shape),
        "output": f"{_output(recipe)} [B, {'classes' if isinstance(recipe, Classifier) else 'F'}]",
        "classes": classes,
        **(_tasks(recipe) if isinstance(recipe, ContinualClassifier) else {}),
        "mean": recipe.normalize.mean[: shape[0]].tolist(),
        "std": recipe.normalize.std[: shape[0]].tolist(),
        "normalization": "(image - mean) / std: inside model.pt2 and model.onnx, not in the networks of *.safetensors",
        "largest_difference": differences,
        "difference": "of the outputs from those of the recipe, over the largest output",
        "versions": {**versions(), **{name: version(name) for kind in formats for name in _PACKAGES[kind]}},
    }


def _tasks(recipe: ContinualClassifier) -> dict[str, Any]:
    """The tasks of a continual recipe, as lists of the numbers of their classes."""
    tasks = recipe.tasks
    of_all = "all classes whose task has begun; -inf for the others"
    return {
        "scenario": tasks.scenario,
        "tasks": [[*tasks.labels(task)] for task in range(len(tasks))],
        "task": recipe.asked_task,
        "predicts": of_all
        if recipe.asked_task is None
        else f"the classes of task {recipe.asked_task}; -inf for the others",
    }


def _picture(recipe: Recipe, shape: tuple[int, ...]) -> dict[str, Any]:
    """How a picture becomes an image of the shape, step by step; only the shape of images that are no squares."""
    channels, height, width = shape
    if height != width:
        return {"resize": f"{height} rows, {width} columns"}
    return described(Reading(height, channels, recipe.reading.value_range))


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
