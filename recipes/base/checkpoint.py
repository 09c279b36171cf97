"""Loads the checkpoints of runs. A checkpoint cannot run or import code that the user has not named."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules import Tasks
from datamodules.reading import Reading
from recipes.base.imports import check_classes, import_named, refusal, trusted_only
from recipes.base.loaded import check_model, taken
from recipes.base.texts import mapping_from_yaml
from recipes.nn.encoders.files import about_checkpoint, checkpoint_file, why_unreadable
from recipes.nn.finite import not_finite

if TYPE_CHECKING:
    from recipes.base.recipe import Recipe


def load(path: str | Path, imports: Iterable[str | Path] = ()) -> "Recipe":
    """Builds the recipe of a run with its trained weights, in eval mode on the CPU.

    A checkpoint holds the names of its classes. Only classes of this project, torch, torchvision, timm, lightning and
    the modules in ``imports`` are accepted.

    Args:
        path: a checkpoint file, a run directory (then its best checkpoint, if it monitored a validation measure, else
            its last one), or the directory of several runs (then that of the newest).
        imports: your own modules that the run needs: Python files, or names such as ``my_package.recipes``. They are
            imported, and stay accepted in this process.

    Returns:
        The recipe: ``recipe(images)`` gives features, ``recipe.encoder`` is the trained encoder.

    Raises:
        FileNotFoundError: if there is no checkpoint.
        ImportError: if one of ``imports`` cannot be imported.
        ValueError: if the checkpoint was not made by the ``recipes`` command, or names a class of another module.
    """
    for name in imports:
        import_named(str(name))
    path = checkpoint_path(path)
    return restored(_read(path), path)


def restored(checkpoint: dict[str, Any], path: str | Path) -> "Recipe":
    """Builds the recipe whose configuration and weights a checkpoint has; ``path`` names it in messages."""
    from jsonargparse import ArgumentError, ArgumentParser

    from recipes.base.recipe import AnyRecipe

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnyRecipe, "model")
    with trusted_only():
        try:
            model = mapping_from_yaml(checkpoint["model"], "its text")
            check_model(model, AnyRecipe)
            config = parser.parse_object({"model": without_weights(model)})
            check_classes(config)
        except (ArgumentError, ValueError, ImportError) as error:
            words = refusal(str(error)) or " ".join(str(error).split())
            raise ValueError(f"the configuration in {path} cannot be used: {words}") from None
        recipe = parser.instantiate(config).model
    try:
        recipe.on_load_checkpoint(checkpoint)
        if names := not_finite(checkpoint["state_dict"]):
            diverged = f"weights in {path} are not finite ({names[0]}): that run diverged, use an earlier checkpoint"
            raise ValueError(diverged)
        recipe.load_state_dict(checkpoint["state_dict"])
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        what = f"{type(error).__name__}: {_first_line(error)}"
        raise ValueError(f"{path} is damaged, so its weights cannot be loaded ({what})") from error
    recipe.encoder.pretrained = True
    recipe.encoder.reading = recipe.reading
    recipe.made_from = {name: checkpoint[name] for name in _MADE_FROM if name in checkpoint}
    return recipe.eval()


# with the state_dict all that makes a recipe anew
_MADE_FROM = ("model", "recipe", "image_shape", "reading", "class_names")


def config_of(path: str | Path, sections: Iterable[str] | None = None) -> dict[str, Any]:
    """What the configuration of the run that wrote a checkpoint decides for another command: see ``taken``.

    Args:
        path: path of the checkpoint.
        sections: keys that are needed: classes of others may be of any module. If null, all.

    Raises:
        ValueError: if the checkpoint cannot be read, or names a class that does not belong there.
    """
    from recipes.base.recipe import AnyRecipe

    checkpoint = _read(Path(path))
    try:
        with trusted_only():
            whole = mapping_from_yaml(checkpoint["config"], "its text")
            asked = whole if sections is None else {key: whole.get(key) for key in sections}
            config, left_out = taken(asked, AnyRecipe)
    except (ValueError, ImportError) as error:
        raise ValueError(f"the configuration in {path} cannot be used: {' '.join(str(error).split())}") from None
    if left_out:
        rank_zero_info(
            f"not taken from {path}, because a checkpoint does not decide where files are written: "
            f"{', '.join(left_out)}. Give them as options if you need them."
        )
    _keep_split(config.get("data"))
    return config


def _keep_split(config: Any) -> None:
    """Keeps the split of runs that are older than ``ImageFolder.split_by``: their test images stay the same."""
    if isinstance(config, dict):
        arguments = config.get("init_args")
        if str(config.get("class_path")).rpartition(".")[2] == "ImageFolder" and isinstance(arguments, dict):
            arguments.setdefault("split_by", "position")
        config = list(config.values())
    for part in config if isinstance(config, list) else []:
        _keep_split(part)


def saved_run(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """What a resumed run compares and continues; nothing of it is built.

    Returns:
        The configuration as the run saved it, empty if there is none, and the ids of its runs in Weights & Biases.
    """
    checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    config = mapping_from_yaml(checkpoint.get("config", "{}"), f"the configuration in {path}")
    _keep_split(config.get("data"))
    saved = checkpoint.get("wandb_ids", [])
    if not isinstance(saved, list):
        raise ValueError(f"{path} is damaged: its wandb_ids must be a list. Use another checkpoint")
    ids = [name for name in saved if isinstance(name, str) and re.fullmatch(r"[\w-]+", name)]
    return config, ids


def without_weights(config: Any) -> Any:
    """A configuration whose encoders do not look for the weights they started from: a checkpoint is to be loaded."""
    if isinstance(config, dict):
        started_from = {name: value for name, value in _WEIGHTS.items() if name in config}
        return {name: without_weights(value) for name, value in config.items()} | started_from
    return [without_weights(part) for part in config] if isinstance(config, list) else config


_WEIGHTS = {"weights": None, "pretrained": False}  # arguments of encoders


def classes_of(path: str | Path) -> tuple[int | None, Tasks | None]:
    """How many classes the recipe in a checkpoint distinguishes, and its tasks; None for a recipe without them.

    Raises:
        ValueError: if the checkpoint cannot be read, or has no such tasks.
    """
    arguments = mapping_from_yaml(_read(Path(path))["model"], f"the configuration in {path}").get("init_args")
    arguments = arguments if isinstance(arguments, dict) else {}
    count, tasks = arguments.get("num_classes"), arguments.get("tasks")
    try:
        return count if isinstance(count, int) else None, None if tasks is None else Tasks(**tasks)
    except TypeError as error:
        raise ValueError(f"{path} is damaged: its tasks are {tasks}. Use another checkpoint") from error


def reading_of(path: str | Path) -> Reading:
    """How the images of the run that wrote a checkpoint were read."""
    return Reading.of_checkpoint(_read(Path(path)))


def checkpoint_path(path: str | Path, resume: bool = False) -> Path:
    """The checkpoint file that a path means: itself, or one of a run directory, which a line of the log names.

    Args:
        path: path of a checkpoint, of a run directory or of a directory of runs.
        resume: whether training is resumed, which takes the last checkpoint of a run instead of its best one.

    Raises:
        FileNotFoundError: if there is none.
    """
    if file := checkpoint_file(path, resume):
        if file != Path(path).expanduser():
            rank_zero_info(about_checkpoint(file))
        return file
    raise FileNotFoundError(f"no checkpoint at {path}: give a .ckpt file or the directory of a run that saved one")


def check_checkpoint(path: str | Path) -> None:
    """Checks that the Trainer can load a checkpoint, whoever wrote it; nothing in it is run.

    Raises:
        ValueError: if the file is damaged, or something else than a checkpoint of Lightning.
    """
    checkpoint = _loaded(Path(path))
    if not isinstance(checkpoint, dict) or not {"pytorch-lightning_version", "state_dict"} <= checkpoint.keys():
        raise ValueError(f"{path} is no checkpoint of a Trainer: use one that a run has saved")


def _loaded(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError or KeyError
        raise ValueError(f"{path} is not a checkpoint that can be read: {why_unreadable(path, error)}") from error


def _read(path: Path) -> dict[str, Any]:
    checkpoint = _loaded(path)
    if not isinstance(checkpoint, dict) or not {"config", "model", "state_dict"} <= checkpoint.keys():
        raise ValueError(f"{path} holds no configuration: it was not written by the recipes command; give --config")
    state = checkpoint["state_dict"]
    tensors = isinstance(state, dict) and all(
        isinstance(value, Tensor) or str(name).endswith("_extra_state") for name, value in state.items()
    )
    if not tensors:
        raise ValueError(f"{path} is damaged: its state_dict must map names to tensors. Use another checkpoint")
    return checkpoint


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
