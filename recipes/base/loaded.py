"""What is taken of the configuration in a checkpoint: what the model and the reading of data need.

A checkpoint may come from a stranger. Each argument takes only a class of its own kind, and from a trusted module. This
is checked before anything is imported or built. Where a run writes comes from the command line, the user's config or
the default, never out of a checkpoint.
"""

import collections.abc
import inspect
import re
from collections.abc import Mapping
from enum import Enum
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch import Trainer

from datamodules import ImageDataModule
from datamodules.paths import WRITTEN
from recipes.base.imports import check_trusted, class_named

RUN_DIRECTORY = "<run directory>"
"""Value of an argument that needs a place to write to: the command replaces it by the directory of the new run."""

_OF_THE_RUN = ("seed_everything", "name", "compile")  # the options outside of sections that a resumed run keeps
_PLACE_NAMES = re.compile(r"(^|_)(dir|dirpath|directory|folder|path|location|uri|url)$")  # libraries type some as str


_CALLABLE = "callable"  # one of the kinds of an argument


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
            kept[key] = writer.arguments(value, _parameters(Trainer) if key == "trainer" else {}, key)
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
            raise ValueError(f"{key} has no class_path: it must name {_either((kind,))}")
        return self.value(value, kind, key)

    def arguments(self, given: Mapping[str, Any], parameters: Mapping[str, tuple[Any, bool]], key: str) -> Any:
        """The arguments that may be taken, without places to write to."""
        kept = {}
        for name, value in given.items():
            kind, needed = parameters.get(name, (Any, False))
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
        kinds = _kinds(kind)
        classes = tuple(each for each in kinds if _is_own_class(each))
        if isinstance(value, Mapping):
            if "class_path" in value:
                return self._object(value, classes, Any in kinds, key)
            return self.arguments(value, _parameters(classes[0]) if len(classes) == 1 else {}, key)
        if isinstance(value, str) and self._may_be_an_object(value, classes, kinds):
            raise ValueError(f"{key} is {value}: it must be {_either(classes)}, given by its class_path")
        return value

    @staticmethod
    def _may_be_an_object(text: str, classes: tuple[type, ...], kinds: set[Any]) -> bool:
        """Whether the parser would import what a string names, or read it as YAML or as a file with YAML."""
        if {str, Any, Literal} & kinds:
            return _CALLABLE in kinds and "." in text
        return bool(classes) or _CALLABLE in kinds

    def _object(self, value: Mapping[str, Any], classes: tuple[type, ...], anything: bool, key: str) -> dict[str, Any]:
        path = value["class_path"]
        check_trusted(path)
        if anything and not classes:  # the parser builds nothing there
            return dict(value)
        if not classes:
            raise ValueError(f"{key} is {path}: no class belongs there")
        found: Any = class_named(path)
        if not issubclass(found, classes):
            raise ValueError(f"{key} is {path}: it must be {_either(classes)}")
        kept = dict(value)
        for name in ("init_args", "dict_kwargs"):
            if isinstance(given := value.get(name), Mapping):
                kept[name] = self.arguments(given, _parameters(found), key)
        return kept

    def _is_place(self, name: str, value: Any, kind: Any) -> bool:
        if not isinstance(value, str):
            return False
        kinds = _kinds(kind)
        if not self.writes:
            return WRITTEN in kinds
        return Path in kinds or bool(_PLACE_NAMES.search(name)) or _leads_out(value)


def _leads_out(path: str) -> bool:
    """Whether a path or URL may lead out of the folder that it is relative to."""
    pure = PurePosixPath(path)
    return pure.is_absolute() or ".." in pure.parts or path.startswith("~") or "://" in path


@cache
def _parameters(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each argument of a class, and whether it has no default."""
    return {
        parameter.name: (parameter.annotation, parameter.default is inspect.Parameter.empty)
        for parameter in get_signature_parameters(kind, None)
    }


def _kinds(kind: Any) -> set[Any]:
    """The types that a type consists of: those in a union, of the entries of a list, and of what a callable returns."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _kinds(get_args(kind)[0]) | {mark for mark in kind.__metadata__ if mark is WRITTEN}
    if origin is Literal:
        return {Literal}
    if collections.abc.Callable in (origin, kind):
        return {_CALLABLE}.union(*map(_kinds, get_args(kind)[-1:]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {dict}
    if get_args(kind):
        inner = set().union(*map(_kinds, get_args(kind)))
        return inner | ({origin} if isinstance(origin, type) and _is_own_class(origin) else set())
    return {Any} if kind is inspect.Parameter.empty or isinstance(kind, str) else {kind}


def _is_own_class(kind: Any) -> bool:
    """Whether objects of a type are given by a ``class_path``, unlike numbers, texts, paths and times."""
    plain = ("builtins", "collections.abc", "datetime", "pathlib", "types", "typing")
    return inspect.isclass(kind) and kind.__module__ not in plain and not issubclass(kind, Enum)


def _either(classes: tuple[type, ...]) -> str:
    if not classes:
        return "a class"
    return "a class that inherits from " + " or ".join(sorted(each.__name__ for each in classes))
