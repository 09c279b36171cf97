"""Finds the weights of an encoder in a file, whatever program wrote it."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from recipes.augment.normalize import Normalization
from recipes.errors import nearest as suggestion
from recipes.nn.encoders.base import Encoder
from recipes.nn.encoders.files import WeightsFile, checkpoint_file, normalization, read_weights
from recipes.nn.finite import listed, not_finite

__all__ = [
    "NULL",
    "check_finite",
    "checkpoint_file",
    "load_mismatch",
    "load_weights",
    "matched",
    "normalization",
    "resized_positions",
    "with_choice",
]

NULL = "None"  # what jsonargparse makes of --model.encoder.weights null
_SHOWN = 3  # names in a message

_WRAPPERS = {"module", "_orig_mod"}  # parts of names that DataParallel, DDP, AveragedModel and torch.compile add
_AVERAGED = {"teacher", "ema"}  # words in the name of a network that is used after training
_FOLLOWING = {"student", "momentum", "target", "key", "k"}  # words in the name of one that is not
_MOST_TOKENS = 5  # before the patches: a class token and four registers
_POSITIONS = {"pos_embed", "pos_embedding", "position", "position_embeddings"}
_TOKEN = re.compile(r"(cls|class|dist|distillation|reg|register|storage)_tokens?")  # with its own part in the attention


def load_weights(
    module: Encoder,
    path: str | Path,
    optional: Collection[str] = (),
    normalization: Normalization | None = None,
) -> None:
    """Loads the weights of an encoder from a file, in place, and logs one line about them.

    The file may be a state_dict, a checkpoint of a recipe or of another program, safetensors, the directory of a run,
    or the folder of a timm model from Hugging Face. The network is found wherever it is in the file: in dictionaries
    such as ``state_dict``, ``model`` or ``teacher``, and behind prefixes such as ``module.``, ``_orig_mod.``,
    ``backbone.`` or ``encoder_q.``. Its parts may be numbered, as in ``nn.Sequential(*network.children())``.

    - Parts of the file that are not in the encoder, such as a classifier or a projection head, are left out.
    - Position embeddings of another number of patches are resized. For grey images, the first convolution is summed
      over RGB.
    - If several networks in the file fit, takes the encoder of a recipe's checkpoint; otherwise the teacher or the
      moving average (``ema``) of a model, and neither a ``student`` nor the ``momentum``, ``target`` or key network
      (``encoder_k``) of a self-supervised method. ``FILE#NAME`` chooses another one by a part of its name:
      ``checkpoint.pth#student``.

    Nothing in the file is run. Mean and standard deviation of the images are taken from the file, if it states them.

    Args:
        module: gets the weights.
        path: path of the file or folder, with ``#NAME`` if the file holds several networks and another one is wanted.
        optional: names of tensors of the encoder that keep their values if those in the file have another shape.
        normalization: mean and standard deviation of the images in training, if known. If None, uses those that the
            file states.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no weights, or those of another network than ``module``, or if several networks
            fit and none is preferred, or if a tensor that is taken has NaN or infinite elements.
    """
    if path == NULL:
        return
    found = matched(module, path, optional)
    check_finite(found.taken, path)
    module.load_state_dict({**module.state_dict(), **found.taken})
    known = normalization or found.file.normalization
    if isinstance(module, Encoder):
        module.pretrained = True
        module.normalization = known
        module.reading = found.file.reading
    by = f"mean {_numbers(known[0])} and std {_numbers(known[1])}" if known else "those of the data, as it states none"
    rank_zero_info(f"{found.summary()}; images are normalised by {by}")


def check_finite(tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Refuses weights that are not finite.

    Args:
        tensors: those that are used, by name.
        path: path of the file that they come from.

    Raises:
        ValueError: if an element is NaN or infinite.
    """
    if names := not_finite(tensors):
        raise ValueError(
            f"weights: {path} has NaN or infinite elements in {listed(names)}: the file is damaged, or the training "
            "that made it diverged. Use another file, such as an earlier checkpoint"
        )


class Match(NamedTuple):
    """Where the weights of a network are in a file.

    Attributes:
        file: file with its tensors.
        prefix: what the names in the file have before those of the network.
        taken: tensors by the names that the network has for them, in its shapes.
        left: other tensors in the file behind the prefix, by their names without it.
        missing: names in the network for which the file has no tensor, or one of another shape.
        changes: how tensors of another shape were adapted.
        others: prefixes of other networks in the file that fit.
    """

    file: WeightsFile
    prefix: str
    taken: dict[str, Tensor]
    left: dict[str, Tensor]
    missing: list[str]
    changes: list[str]
    others: tuple[str, ...] = ()

    def summary(self) -> str:
        """Says in one line what was taken, adapted, left out and missing."""
        count = len(self.taken) + len(self.missing)
        parts = [f"took {len(self.taken)} of {count} tensors{_of(self.prefix)} in {self.file.path}", *self.changes]
        if self.left:
            heads = Counter(name.partition(".")[0] for name in self.left)
            parts.append(f"left out {_first([f'{name} ({number} tensors)' for name, number in heads.items()])}")
        if self.others:
            names = [other.rstrip(".") or "the top of the file" for other in self.others]
            parts.append(f"did not choose {_first(names)} (append #NAME to the path to choose by name)")
        parts.append(f"{_first(self.missing)} keeps its random weights" if self.missing else "nothing is missing")
        return f"weights: {'; '.join(parts)}"


def matched(module: nn.Module, path: str | Path, optional: Collection[str] = ()) -> Match:
    """Finds the weights of a network in a file; see ``load_weights``."""
    where, choice = with_choice(path)
    file = read_weights(where)
    own = {_plain(name.removeprefix("network.")): name for name in module.state_dict()}
    state = {_plain(name): value for name, value in file.state.items()}
    network = module.network if isinstance(module, Encoder) else module
    ours = module.state_dict()

    def read(names: Mapping[str, str], state: Mapping[str, Tensor], prefix: str) -> Match:
        """What the file has behind a prefix for names that stand for those of the network."""
        taken: dict[str, Tensor] = {}
        missing: list[str] = []
        changes: list[str] = []
        for name, real in names.items():
            given = state.get(prefix + name)
            fitting = None if given is None else _fitting(real, given, ours[real], network)
            if fitting is not None:
                taken[real] = fitting[0]
                changes += fitting[1:]
            elif not name.endswith("num_batches_tracked"):  # not in files of before torch 0.4.1, and not used here
                missing.append(real)
        left = {
            name.removeprefix(prefix): value
            for name, value in state.items()
            if name.startswith(prefix) and name.removeprefix(prefix) not in names
        }
        return Match(file, prefix, taken, left, missing, changes)

    def foreign(match: Match, names: Collection[str]) -> list[str]:
        # a recipe has its head beside the encoder
        return list(match.left) if _is_of_recipe(match.prefix) else _foreign(match.left, names, network)

    def fits(match: Match, names: Collection[str]) -> bool:
        return set(match.missing) <= set(optional) and not foreign(match, names)

    prefixes: list[str] = []
    for names in (own, _by_number(own, network)):
        found = _prefixes(names, state, choice)
        prefixes = prefixes or found
        matches = [match for prefix in found if fits(match := read(names, state, prefix), names)]
        if matches:
            return _chosen(matches, where)
    for prefix in dict.fromkeys([*prefixes[:1], _common_prefix(state)]):
        converted = _converted(module, state, prefix)
        if converted is not None and fits(match := read(own, converted, ""), own):
            return match._replace(prefix=prefix, changes=[*match.changes, "converted the names by timm"])
    nearest = read(own, state, prefixes[0] if prefixes else "")
    unexpected = foreign(nearest, own) or list(nearest.left)
    raise ValueError(_refusal(module, nearest, unexpected, state, choice, where))


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


def resized_positions(positions: Tensor, count: int) -> Tensor | None:
    """Resizes learned position embeddings to another number of square patches, as timm does: bicubic, antialiased.

    Args:
        positions: embeddings [1, T + N, D] of T class tokens and N patches.
        count: T + M, the number of embeddings afterwards.

    Returns:
        Embeddings [1, T + M, D]; None unless there is a number T of tokens for which N and M are squares.
    """
    given = positions.shape[1]
    for tokens in range(min(_MOST_TOKENS + 1, given, count)):
        old, new = math.isqrt(given - tokens), math.isqrt(count - tokens)
        if old**2 == given - tokens and new**2 == count - tokens:
            break
    else:
        return None
    first, patches = positions[:, :tokens], positions[:, tokens:].float()
    grid = patches.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", antialias=True)
    return torch.cat([first, grid.permute(0, 2, 3, 1).flatten(1, 2).to(first.dtype)], 1)


def with_choice(path: str | Path) -> tuple[str, str]:
    """The path, and the part of a name that follows it after #."""
    text = str(path)
    if "#" in text and not Path(text).expanduser().exists():
        text, _, choice = text.rpartition("#")
        return text, _plain(choice)
    return text, ""


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefixes(names: Collection[str], state: Mapping[str, Tensor], choice: str) -> list[str]:
    """The prefixes behind which the file has names of the network: those with most of them first."""
    counts: Counter[str] = Counter()
    for name in state:
        parts = name.split(".")
        for depth in range(len(parts)):
            if ".".join(parts[depth:]) in names:
                counts["".join(f"{part}." for part in parts[:depth])] += 1
    return [prefix for prefix, _ in counts.most_common() if not choice or f".{choice}." in f".{prefix}"]


def _common_prefix(state: Mapping[str, Tensor]) -> str:
    """The dictionaries and parts that all names in the file begin with."""
    first, last = min(state).split("."), max(state).split(".")
    same = next((depth for depth, (a, b) in enumerate(zip(first, last)) if a != b), 0)
    return "".join(f"{part}." for part in first[:same])


def _by_number(own: Mapping[str, str], network: nn.Module) -> dict[str, str]:
    """The names that a network's parts have in ``nn.Sequential(*network.children())``."""
    numbers = {name: str(number) for number, (name, _) in enumerate(network.named_children())}
    parts = {name: name.partition(".") for name in own}
    if not all(part in numbers for part, _, _ in parts.values()):
        return {}  # parameters of its own
    return {f"{numbers[part]}.{rest}": own[name] for name, (part, _, rest) in parts.items()}


def _fitting(name: str, given: Tensor, own: Tensor, network: nn.Module) -> tuple[Any, ...] | None:
    """The tensor in the shape that the network has, and how it was adapted, if it was; None if that is not possible."""
    if given.shape == own.shape:
        return (given,)
    if name.rpartition(".")[2] in _POSITIONS and given.ndim == own.ndim == 3 and given.shape[2] == own.shape[2]:
        positions = resized_positions(given, own.shape[1])
        return positions if positions is None else (positions, f"resized {name} from {len(given[0])} to {len(own[0])}")
    if (
        given.ndim == 4
        and given.shape[1] == 3
        and given.sum(1, keepdim=True).shape == own.shape
        and _is_first(name, network)
    ):
        return given.sum(1, keepdim=True), f"summed {name} over RGB for grey images"
    return None


def _is_first(name: str, network: nn.Module) -> bool:
    first = next((part for part, module in network.named_modules() if isinstance(module, nn.Conv2d)), None)
    return name.removeprefix("network.") == f"{first}.weight"


def _foreign(left: Mapping[str, Tensor], names: Collection[str], network: nn.Module) -> list[str]:
    """Names of tensors that are no head, but parts of another network: more blocks, for example."""
    parts = {name.partition(".")[0] for name in names}
    numbered = all(part.isdigit() for part in parts)
    linear = {name.partition(".")[0] for name, value in left.items() if value.ndim == 2 and name.endswith(".weight")}
    removed = tuple(f"{name}." for name, module in network.named_modules() if name and isinstance(module, nn.Identity))

    def is_foreign(name: str, value: Tensor) -> bool:
        part = name.partition(".")[0]
        if not value.is_floating_point() or name.startswith(removed):
            return False
        return part in parts or bool(_TOKEN.fullmatch(name)) or (numbered and part.isdigit() and part not in linear)

    return [name for name, value in left.items() if is_foreign(name, value)]


def _chosen(matches: list[Match], path: str) -> Match:
    """The network that is preferred if several fit."""
    ranks = [_rank(match) for match in matches]
    best = [match for match, rank in zip(matches, ranks) if rank == min(ranks)]
    if len(best) > 1:
        names = ", ".join(match.prefix.rstrip(".") or "the top of the file" for match in best)
        raise ValueError(f"weights: {path} holds {len(best)} networks that fit ({names}): choose one by {path}#NAME")
    others = tuple(match.prefix for match in matches if match is not best[0])
    return best[0]._replace(others=others)


def _is_of_recipe(prefix: str) -> bool:
    return prefix in ("encoder.network.", "state_dict.encoder.network.")


def _rank(match: Match) -> int:
    if _is_of_recipe(match.prefix):
        return 0
    words = set(re.split(r"[._]", match.prefix))
    if match.prefix.startswith("ema_state_dict."):  # MMEngine keeps the average in state_dict, and here the other
        return 3
    return 1 if words & _AVERAGED else 3 if words & _FOLLOWING else 2


def _converted(module: nn.Module, state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor] | None:
    """The tensors behind a prefix by the names of the encoder's library, if it converts those of other programs."""
    convert = getattr(module, "converted", None)
    return convert and convert({n.removeprefix(prefix): value for n, value in state.items() if n.startswith(prefix)})


def _refusal(
    module: nn.Module, nearest: Match, unexpected: list[str], state: Mapping[str, Tensor], choice: str, path: str
) -> str:
    """Why the file does not fit: how the names that fit best differ from those of the network."""
    parts = sorted({name.partition(".")[0] for name in state})
    if choice and not any(f".{choice}." in f".{name}" for name in state):
        return f"weights: {path} has no part named {choice}: it has {_first(parts, 10)}"
    own = {_plain(name.removeprefix("network.")): name for name in module.state_dict()}
    given = {own.get(name, name): state[nearest.prefix + name] for name in own if nearest.prefix + name in state}
    unread = {name: name for name in own.values() if name.endswith("num_batches_tracked")}
    others = {name: nearest.left[name] for name in unexpected}
    problem = load_mismatch(module, {**{n: module.state_dict()[n] for n in unread}, **given, **others})
    hints = []
    if absent := [name for name, real in own.items() if real in nearest.missing and nearest.prefix + name not in state]:
        question = suggestion(absent[0], nearest.left or state, alike=0.75)
        hints = [f"the file has no {absent[0]}{question}"] if question else []
    if nearest.file.architecture:
        hints.append(f"the folder is of {nearest.file.architecture}")
    words = "; ".join([problem, *hints])
    return f"weights: {nearest.file.path} does not fit this {type(module).__name__}: {words}"


def _numbers(values: Collection[float]) -> str:
    return " ".join(f"{value:.4g}" for value in values)


def _of(prefix: str) -> str:
    return f" of {prefix.rstrip('.')}" if prefix else ""


def _first(names: Collection[str], most: int = _SHOWN) -> str:
    return ", ".join([*list(names)[:most], *["..."] * (len(names) > most)])
