"""``recipes export``: the model of a run in files that need nothing of this project."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from datamodules.reading import LARGEST_SIZE, Reading
from datamodules.sources.decode import described
from recipes.base.checkpoint import checkpoint_path, load
from recipes.base.classifier import Classifier
from recipes.base.recipe import Recipe
from recipes.cli.arguments import IMPORT_HELP
from recipes.cli.commands.exported import (
    Model,
    named,
    onnx_session,
    output_name,
    plain_network,
    program_of,
    write_onnx,
    write_weights,
)
from recipes.continual.answers import ContinualClassifier
from recipes.evaluation.tables import versions

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
    ``resnet18(num_classes=...)``; otherwise ``export.json`` says why not. These two want normalised images. Both state
    mean and standard deviation, so that an encoder with one of them as its ``weights`` normalises images in the same
    way. ``export.json`` says what the files take and give: names of the classes, mean and standard deviation, shape of
    an image, and the steps from a picture to an image.

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
    left_out: dict[str, Any] = {}

    def check(name: str, exported: Callable[[Tensor], Tensor], allowed: float) -> None:
        differences[name] = _difference(exported, pictures, expected)
        if not differences[name] <= allowed:
            raise ValueError(
                f"{name} gives other outputs than the recipe: they differ by {differences[name]:.1e} of the largest, "
                f"and {allowed:.0e} is allowed; nothing was written"
            )

    def write_whole_model(path: Path) -> dict[str, Any]:
        """Writes the model as a network of torchvision, or says why a classifier has no such form."""
        try:
            plain = plain_network(recipe)
            if _difference(plain, pictures, expected) > _SAME_OPERATIONS:
                raise ValueError(f"{named(recipe)} computes its outputs otherwise than a network of torchvision")
        except ValueError as error:
            if isinstance(recipe, Classifier):
                rank_zero_info(f"{path.name} is not written: {error}. encoder.safetensors has the encoder")
            return {"left_out": {path.name: str(error)}}
        write_weights(plain[-1], path, recipe)
        check(path.name, plain, _SAME_OPERATIONS)
        return {}

    existing = next(parent for parent in folder.absolute().parents if parent.is_dir())
    with TemporaryDirectory(dir=existing, prefix=".export") as temporary:
        parts = Path(temporary)
        if {"torch", "onnx"} & set(formats):
            program = program_of(recipe, shape)
            if "torch" in formats:
                torch.export.save(program, parts / "model.pt2")
                check("model.pt2", torch.export.load(parts / "model.pt2").module(), _SAME_OPERATIONS)
            if "onnx" in formats:
                write_onnx(program, parts / "model.onnx", recipe)
                check("model.onnx", onnx_session(parts / "model.onnx"), _OTHER_LIBRARY)
        if "safetensors" in formats:
            write_weights(recipe.encoder.network, parts / "encoder.safetensors", recipe)
            check("encoder.safetensors", lambda image: _outputs(recipe, [image])[0], _SAME_OPERATIONS)
            left_out = write_whole_model(parts / "model.safetensors")
        report = _report(recipe, shape, formats, differences) | left_out
        (parts / "export.json").write_text(json.dumps(report, indent=2) + "\n")
        folder.mkdir(parents=True, exist_ok=True)
        for file in parts.iterdir():
            file.replace(folder / file.name)
    return folder


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see recipes export --help")


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
    model = Model(recipe)
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
        "output": f"{output_name(recipe)} [B, {'classes' if isinstance(recipe, Classifier) else 'F'}]",
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
