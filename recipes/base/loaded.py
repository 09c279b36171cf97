"""What is taken of the configuration in a checkpoint: what the model and the reading of data need.

A checkpoint may come from a stranger. Each argument takes only a class of its own kind, and from a trusted module. This
is checked before anything is imported or built. Where a run writes comes from the command line, the user's config or
the default, never out of a checkpoint.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from lightning.pytorch import Trainer

from datamodules import ImageDataModule
from datamodules.paths import WRITTEN
from recipes.base.imports import check_trusted, class_named
from recipes.base.kinds import CALLABLE, either, is_own_class, kinds_of, parameters

RUN_DIRECTORY = "<run directory>"
"""Value of an argument that needs a place to write to: the command replaces it by the directory of the new run."""

# the options outside of sections that a resumed run keeps
_OF_THE_RUN = ("seed_everything", "name", "compile", "float32_matmul_precision")
_PLACE_NAMES = re.compile(r"(^|_)(dir|dirpath|directory|folder|path|location|uri|url)$")  # libraries type some as str


class Taken(NamedTuple):
    """The part of a checkpoint's configuration that is used.

    Attributes:
        config: configuration.
        left_out: keys of the values that name a place to write to.
    """

    config: dict[str, Any]
    left_out: list[str]


def taken(config: Mapping[str, Any], recipe: type) -> Taken:
    """Takes of a whole configuration what a checkpoint may decide.

    Args:
        config: configuration of the run that wrote the checkpoint.
        recipe: base class of all recipes.

    Raises:
        ValueError: if a value names a class that does not belong there, or of a module that is not trusted.
        ImportError: if the module of such a class cannot be imported.
    """
    left_out: list[str] = []
    reader, writer = _Checker(left_out, writes=False), _Checker(left_out, writes=True)
    kept: dict[str, Any] = {"model": reader.required(config.get("model"), recipe, "model")}
    for key, value in config.items():
        if key == "data":
            kept[key] = reader.required(value, ImageDataModule, key)
        elif isinstance(value, Mapping) and key != "model":  # the sections of the Trainer and of callbacks
            kept[key] = writer.arguments(value, parameters(Trainer) if key == "trainer" else {}, key)
        elif key in _OF_THE_RUN and not (isinstance(value, str) and _leads_out(value)):
            kept[key] = value
        elif key == "name" or (key == "runs" and value != "runs"):
            left_out.append(key)
    return Taken(kept, left_out)


def check_model(config: Any, recipe: type) -> None:
    """Checks the configuration of a recipe alone, as ``taken`` does."""
    _Checker([], writes=False).required(config, recipe, "model")


class _Checker:
    """Goes through a configuration beside the types of its arguments.

    Args:
        left_out: gets the keys of the values that are not taken.
        writes: whether a path is a place to write to; if not, only where its type is ``OutputPath``.
    """

    def __init__(self, left_out: list[str], writes: bool) -> None:
        self.left_out = left_out
        self.writes = writes

    def required(self, value: Any, kind: type, key: str) -> Any:
        """The value of an argument that has to be an object."""
        if not isinstance(value, Mapping) or "class_path" not in value:
            raise ValueError(f"{key} has no class_path: it must name {either((kind,))}")
        return self.value(value, kind, key)

    def arguments(self, given: Mapping[str, Any], known: Mapping[str, tuple[Any, bool]], key: str) -> Any:
        """The arguments that may be taken, without places to write to."""
        kept = {}
        for name, value in given.items():
            kind, needed = known.get(name, (Any, False))
            if not self._is_place(str(name), value, kind):
                kept[name] = self.value(value, kind, f"{key}.{name}")
                continue
            self.left_out.append(f"{key}.{name}")
            if needed:
                kept[name] = RUN_DIRECTORY
        return kept

    def value(self, value: Any, kind: Any, key: str) -> Any:
        """The value of an argument of the type ``kind``."""
        if isinstance(value, list):
            return [self.value(each, kind, key) for each in value]
        kinds = kinds_of(kind)
        classes = tuple(each for each in kinds if is_own_class(each))
        if isinstance(value, Mapping):
            if "class_path" in value:
                return self._object(value, classes, Any in kinds, key)
            return self.arguments(value, parameters(classes[0]) if len(classes) == 1 else {}, key)
        if isinstance(value, str) and self._may_be_an_object(value, classes, kinds):
            raise ValueError(f"{key} is {value}: it must be {either(classes)}, given by its class_path")
        return value

    @staticmethod
    def _may_be_an_object(text: str, classes: tuple[type, ...], kinds: set[Any]) -> bool:
        """Whether the parser would import what a string names, or read it as YAML or as a file with YAML."""
        if {str, Any, Literal} & kinds:
            return CALLABLE in kinds and "." in text
        return bool(classes) or CALLABLE in kinds

    def _object(self, value: Mapping[str, Any], classes: tuple[type, ...], anything: bool, key: str) -> dict[str, Any]:
        path = value["class_path"]
        check_trusted(path)
        if anything and not classes:  # the parser builds nothing there
            return dict(value)
        if not classes:
            raise ValueError(f"{key} is {path}: no class belongs there")
        found: Any = class_named(path)
        if not issubclass(found, classes):
            raise ValueError(f"{key} is {path}: it must be {either(classes)}")
        kept = dict(value)
        for name in ("init_args", "dict_kwargs"):
            if isinstance(given := value.get(name), Mapping):
                kept[name] = self.arguments(given, parameters(found), key)
        return kept

    def _is_place(self, name: str, value: Any, kind: Any) -> bool:
        if not isinstance(value, str):
            return False
        kinds = kinds_of(kind)
        if not self.writes:
            return WRITTEN in kinds
        return Path in kinds or bool(_PLACE_NAMES.search(name)) or _leads_out(value)


def _leads_out(path: str) -> bool:
    """Whether a path or URL may lead out of the folder that it is relative to."""
    pure = PurePosixPath(path)
    return pure.is_absolute() or ".." in pure.parts or path.startswith("~") or "://" in path
