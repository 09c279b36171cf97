"""Weights from local files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recipes.nn.encoders.base import Encoder

NULL = "None"  # what jsonargparse makes of --model.encoder.weights null
_SHOWN = 3  # names in an error message


def load_weights(module: Encoder, path: str | Path) -> None:
    """Loads the weights of an encoder from a file, in place.

    The file is a state_dict, a dictionary with a ``state_dict``, or a checkpoint of a recipe, whose encoder is taken
    with the mean and standard deviation that its images were normalised by.
    Names may lack the ``network.`` that an ``Encoder`` puts before those of the network it wraps.
    Nothing in the file is run.

    Args:
        module: gets the weights; names and shapes have to be those of the file.
        path: of the file, or the directory of a run, which stands for its last checkpoint, or of runs: of the newest.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no weights, or not those of ``module``.
    """
    if path == NULL:
        return
    state = read_state(path)
    load_state(module, state, path)
    module.pretrained = True
    module.normalization = normalization(state)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Reads the tensors of a file as ``load_weights`` does, by the names they have there."""
    path = checkpoint_file(path) or Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"weights: there is no file {path}, and it is not the directory of a run")
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler stumbles over a foreign file in many ways
        reason = str(error).partition("\n")[0]
        raise ValueError(f"weights: {path} cannot be read as tensors and plain values ({reason})") from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    state = {name: value for name, value in content.items() if isinstance(value, Tensor)} if _named(content) else {}
    if not state:
        raise ValueError(f"weights: {path} holds no state_dict; save one with torch.save(encoder.state_dict(), path)")
    return state


def checkpoint_file(path: str | Path) -> Path | None:
    """The file that a path means; None if there is none.

    It is the file itself, the last checkpoint of the directory of a run, or that of the newest run in a directory of
    runs, whose names are times.
    """
    path = Path(path)
    of_newest = sorted(path.glob("*/checkpoints/last.ckpt"), reverse=True)
    files = (path, path / "checkpoints" / "last.ckpt", path / "last.ckpt", *of_newest)
    return next((file for file in files if file.is_file()), None)


def load_state(module: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Copies ``state``, which came from ``path``, into ``module``; see ``load_weights``."""
    own = module.state_dict()
    encoder = {name.removeprefix("encoder."): value for name, value in state.items() if name.startswith("encoder.")}
    # networks have parts called "encoder" too (torchvision's ViT), so take the reading that fits best
    readings = [state, encoder, _prefixed(state), _prefixed(encoder)]
    state = max(readings, key=lambda reading: len(own.keys() & reading.keys()))
    # files of before torch 0.4.1 do not count batches, and nothing here uses the count
    state = {name: value for name, value in own.items() if name.endswith("num_batches_tracked")} | state
    if problem := load_mismatch(module, state):
        raise ValueError(f"weights: {path} does not fit this {type(module).__name__}: {problem}")
    module.load_state_dict(state)


def normalization(state: Mapping[str, Tensor]) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The mean and standard deviation that a recipe's images were normalised by, from its state_dict, if it has any."""
    if "normalize.mean" not in state:
        return None
    mean, std = (tuple(state[f"normalize.{name}"].flatten().tolist()) for name in ("mean", "std"))
    return mean, std


def load_mismatch(module: nn.Module, state: Mapping[str, Any]) -> str:
    """Says in one line how the names and shapes of a state_dict differ from those of a module; empty if they agree."""
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)} for {list(value.shape)}"
        for name, value in own.items()
        if name in state and isinstance(value, Tensor) and state[name].shape != value.shape
    ]
    problems = [("missing", missing), ("unexpected", unexpected), ("of another shape", shapes)]
    return "; ".join(f"{len(names)} {what} ({_first(names)})" for what, names in problems if names)


def _named(content: Any) -> bool:
    return isinstance(content, dict) and all(isinstance(name, str) for name in content)


def _prefixed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"network.{name}": value for name, value in state.items()}


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN] + ["..."] * (len(names) > _SHOWN))
