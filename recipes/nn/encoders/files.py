"""Files of weights, of this project and of others, as tensors by name. Nothing in a file is run."""

import json
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from datamodules.reading import Reading
from recipes.augment.normalize import Normalization

BEST, LAST = "best.ckpt", "last.ckpt"  # checkpoints in the directory of a run
RECORD = "best.json"  # beside the best one
_HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")  # the weights in a folder, beside its config.json
_HEAD = 512  # bytes that tell a web page and a pointer
_DEEPEST = 16  # dictionaries and modules in each other: a hostile file may have one that contains itself


class WeightsFile(NamedTuple):
    """What a file of weights holds.

    Attributes:
        path: file that was read.
        state: tensors by name: the names of the dictionaries that hold them and their own, joined by dots.
        normalization: mean and standard deviation of the images in training, where the file states them.
        architecture: timm's name of the network, where the folder of the file states it.
        reading: how the images of training were read, where the file is the checkpoint of a recipe.
    """

    path: Path
    state: dict[str, Tensor]
    normalization: Normalization | None = None
    architecture: str | None = None
    reading: Reading = Reading()


def read_weights(path: str | Path) -> WeightsFile:
    """Reads the tensors in a file: any dictionaries of PyTorch (.pt, .pth, .ckpt, .bin), or safetensors.

    Objects that are neither tensors nor plain values, such as the options of a training script, are left out: their
    classes are not imported and their code is not run. Of a module that was saved whole, the tensors are read.

    Args:
        path: path of the file, the directory of a run or of runs, or the folder of a timm model from Hugging Face.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read, or holds no tensors with names.
    """
    asked, path = path, Path(path).expanduser()
    config: dict[str, Any] = {}
    if (folder := hugging_face_folder(path)) is not None:
        path, config = _weights_in(folder), _json(folder / "config.json")
    elif (file := checkpoint_file(path)) is not None:
        path = file
    else:
        raise FileNotFoundError(f"weights: there is no file {asked}, and it is not the directory of a run")
    try:
        content, notes = _safetensors(path) if _is_safetensors(path) else (_torch(path), {})
    except Exception as error:  # the unpickler stumbles over a foreign file in many ways
        raise ValueError(
            f"weights: {path} cannot be read as tensors and plain values ({why_unreadable(path, error)})"
        ) from error
    state = dict(_named_tensors(content, set()))
    if not state:
        raise ValueError(f"weights: {path} holds no state_dict; save one with torch.save(encoder.state_dict(), path)")
    of_model = config.get("pretrained_cfg")
    stated = {**config, **(of_model if isinstance(of_model, dict) else {}), **notes}
    reading = Reading.of_checkpoint(content) if isinstance(content, Mapping) else Reading()
    return WeightsFile(path, state, _stated(stated) or _of_recipe(state), config.get("architecture"), reading)


def checkpoint_file(path: str | Path, resume: bool = False) -> Path | None:
    """The file that a path means; None if there is none.

    It is the file itself, the best or else the last checkpoint of the directory of a run, or that of the newest run in
    a directory of runs, whose names are times.

    Args:
        path: path of a file, of the directory of a run or of a directory of runs.
        resume: whether training is resumed, which takes the last checkpoint.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return path
    folders = (path / "checkpoints", path, *sorted(path.glob("*/checkpoints"), reverse=True))
    names = (LAST,) if resume else (BEST, LAST)
    files = (folder / name for folder in folders for name in names)
    return next((file for file in files if file.is_file()), None)


@contextmanager
def downloading(weights: str, instead: str) -> Iterator[None]:
    """Says what to do where weights cannot be downloaded.

    Args:
        weights: which they are.
        instead: what else to set.

    Raises:
        OSError: if a library cannot download them.
    """
    try:
        yield
    except OSError as error:  # those of urllib, requests and huggingface_hub
        reason = str(getattr(error, "reason", error)).strip().splitlines() or [type(error).__name__]
        raise OSError(
            f"the {weights} cannot be downloaded ({reason[0]}): download them elsewhere, and {instead}"
        ) from error


def about_checkpoint(file: Path) -> str:
    """Says in one line which state of a run a checkpoint is."""
    record = _json(file.with_name(RECORD)) if file.name == BEST and file.with_name(RECORD).is_file() else {}
    if {"monitor", "value", "epoch"} <= record.keys():
        value = f"the best {record['monitor']} of the run, {record['value']:.4g}, after epoch {record['epoch'] + 1}"
        return f"{file} is taken: it has {value}"
    return f"{file} is taken" + ": it is the last state of the run" * (file.name == LAST)


def hugging_face_folder(path: Path) -> Path | None:
    """The folder with the ``config.json`` of a model: the path, or a snapshot in the cache of Hugging Face under it."""
    folders = (path, *sorted(path.glob("snapshots/*"), key=lambda each: each.stat().st_mtime, reverse=True))
    return next((folder for folder in folders if (folder / "config.json").is_file()), None)


def _weights_in(folder: Path) -> Path:
    found = [folder / name for name in _HUGGING_FACE if (folder / name).is_file()]
    found += [file for kind in ("safetensors", "bin", "pth", "pt") for file in sorted(folder.glob(f"*.{kind}"))]
    if not found:
        raise FileNotFoundError(f"weights: {folder} has a config.json, but none of {', '.join(_HUGGING_FACE)}")
    return found[0]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"weights: {path} is not JSON ({error})") from error
    return content if isinstance(content, dict) else {}


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"  # after the length of the header, which is JSON


def _safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"as safetensors: {error}") from error
    numbers = {name: json.loads(notes[name]) for name in ("mean", "std") if name in notes}
    return content, numbers


class _LeftOut(list[Any]):  # a list, because the unpickler appends to some objects
    """Stands for an object of a class that is not one of tensors and plain values.

    Attributes:
        state: attributes of the object as the file has them; those of a module name its tensors and parts.
    """

    state: Any = None

    def __new__(cls, *args: Any, **options: Any) -> "_LeftOut":
        return super().__new__(cls)

    def __init__(self, *args: Any, **options: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dictionary:
    """Stands for the dictionaries of other libraries, whose entries are set one by one."""

    def __new__(cls, *args: Any) -> Any:
        return OrderedDict()


def _torch(path: Path) -> Any:
    """The content of a file of ``torch.save``, with a stand-in for every object of another class."""
    unknown: set[str] = set()
    kinds: list[type] = [_LeftOut, _Dictionary]
    with suppress(Exception):  # a file of before torch 1.6, or none of torch's: the names come one by one below
        unknown |= set(get_unsafe_globals_in_checkpoint(str(path)))
    while True:
        stand_ins = [(_Dictionary if name.lower().endswith("dict") else kinds[0], name) for name in unknown]
        try:
            with safe_globals(stand_ins):  # type: ignore[arg-type]
                return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            named = re.search(r"Unsupported global: GLOBAL (\S+) was not", str(error))
            new = {named[1], f"builtins.{named[1]}", f"__builtin__.{named[1]}"} - unknown if named else set()
            if new:
                unknown |= new
            elif "Can only SETITEM" in str(error) and len(kinds) > 1:  # some class is a dictionary by another name
                kinds = kinds[1:]
            else:
                raise ValueError(_reason(str(error))) from None


def why_unreadable(path: Path, error: Exception) -> str:
    """Why a file of weights cannot be read, in one line, without torch's advice to run the code in the file."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        return "it is empty: copy or download it anew"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the file itself: fetch that with git lfs pull"
    if re.match(rb"\s*<(!doctype|html|\?xml|!--)", head, re.I):
        return "it is a web page, not what was to be downloaded: open the address in a browser to see why"
    if head.startswith(b"PK"):  # as torch.save writes since 1.6
        if not is_zipfile(path):
            return "it is cut off or damaged: copy or download it anew"
        with suppress(BadZipFile), ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                return (
                    "it is a TorchScript program: save the weights in it with "
                    "torch.save(torch.jit.load(path).state_dict(), new_path)"
                )
    if isinstance(error, EOFError):
        return "it ends too early: copy or download it anew"
    if isinstance(error, LookupError):  # a byte that the unpickler does not know
        return "it is no file of torch.save"
    return _reason(str(error)).partition("\n")[0] or type(error).__name__


def _reason(message: str) -> str:
    """Why the unpickler refused a file, without its advice to run the code in the file."""
    refused = message.partition("WeightsUnpickler error:")[2].strip() or message
    return "it is no file of torch.save" if "weights_only" in refused.partition("\n")[0] else refused


def _named_tensors(content: Any, seen: set[int], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The tensors in dictionaries and modules inside each other, each of which is read once."""
    if id(content) in seen or depth > _DEEPEST:
        return
    seen.add(id(content))
    if isinstance(content, _LeftOut) and isinstance(content.state, dict):  # a module that was saved whole
        parts = [content.state.get(kind) for kind in ("_parameters", "_buffers", "_modules")]
        content = {name: value for part in parts if isinstance(part, dict) for name, value in part.items()}
    if not isinstance(content, Mapping):
        return
    for name, value in content.items():
        if isinstance(name, str) and isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
        elif isinstance(name, str):
            yield from _named_tensors(value, seen, f"{prefix}{name}.", depth + 1)


def _stated(notes: Mapping[str, Any]) -> Normalization | None:
    """The mean and standard deviation in notes, if they are of images in [0, 1] with one channel or three."""
    parts = notes.get("mean"), notes.get("std")
    for numbers in parts:
        if not isinstance(numbers, list | tuple) or len(numbers) not in (1, 3):
            return None
        if not all(isinstance(number, int | float) and 0 <= number <= 1 for number in numbers):
            return None
    mean, std = (tuple(float(number) for number in numbers) for numbers in parts)  # type: ignore[union-attr]
    return (mean, std) if len(mean) == len(std) and min(std) > 0 else None


def _of_recipe(state: Mapping[str, Tensor]) -> Normalization | None:
    prefix = next((name.removesuffix("mean") for name in state if f".{name}".endswith(".normalize.mean")), "")
    known = {part: state.get(f"{prefix}{part}") for part in ("mean", "std")} if prefix else {}
    return _stated({part: value.flatten().tolist() for part, value in known.items() if value is not None})


def normalization(state: Mapping[str, Tensor]) -> Normalization | None:
    """The mean and standard deviation that a recipe's images were normalised by, from its state_dict, if it has any."""
    if "normalize.mean" not in state:
        return None
    mean, std = (tuple(state[f"normalize.{name}"].flatten().tolist()) for name in ("mean", "std"))
    return (mean, std) if min(std) > 0 else None  # 0 marks that they were not set
