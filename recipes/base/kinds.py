"""The types of the arguments of a class, taken apart into the kinds of values that they accept."""

import collections.abc
import inspect
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from jsonargparse import Namespace
from jsonargparse._parameter_resolvers import get_signature_parameters
from jsonargparse._util import import_object

from datamodules.paths import WRITTEN

CALLABLE = "callable"  # one of the kinds of an argument
_WORDS = {str: "a string", int: "an integer", float: "a number", bool: "true or false"}


@cache
def parameters(kind: Any) -> dict[str, tuple[Any, bool]]:
    """The type of each argument of a class, and whether it has no default."""
    return {
        parameter.name: (parameter.annotation, parameter.default is inspect.Parameter.empty)
        for parameter in get_signature_parameters(kind, None)
    }


def kinds_of(kind: Any) -> set[Any]:
    """The types that a type consists of: those in a union, of the entries of a list, and of what a callable returns."""
    origin = get_origin(kind)
    if origin is Annotated:
        return kinds_of(get_args(kind)[0]) | {mark for mark in kind.__metadata__ if mark is WRITTEN}
    if origin is Literal:
        return {Literal}
    if collections.abc.Callable in (origin, kind):
        return {CALLABLE}.union(*map(kinds_of, get_args(kind)[-1:]))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {dict}
    if get_args(kind):
        inner = set().union(*map(kinds_of, get_args(kind)))
        return inner | ({origin} if isinstance(origin, type) and is_own_class(origin) else set())
    return {Any} if kind is inspect.Parameter.empty or isinstance(kind, str) else {kind}


def is_own_class(kind: Any) -> bool:
    """Whether objects of a type are given by a ``class_path``, unlike numbers, texts, paths and times."""
    plain = ("builtins", "collections.abc", "datetime", "pathlib", "types", "typing")
    return inspect.isclass(kind) and kind.__module__ not in plain and not issubclass(kind, Enum)


def either(classes: tuple[type, ...]) -> str:
    """Describes a value of one of several classes."""
    if not classes:
        return "a class"
    return "a class that inherits from " + " or ".join(sorted(each.__name__ for each in classes))


def check_nulls(config: Any) -> None:
    """Refuses null for arguments that cannot be null, which the parser accepts everywhere.

    Args:
        config: parsed configuration, whose classes can all be imported.

    Raises:
        ValueError: if there is one.
    """
    for name, kind in _null_arguments(config):
        classes = tuple(sorted((each for each in kind if is_own_class(each)), key=str))
        words = [either(classes)] if classes else [_WORDS[each] for each in _WORDS if each in kind]
        raise ValueError(f"{name} is null: it must be {' or '.join(words) or 'given'}")


def _null_arguments(config: Any) -> Iterator[tuple[str, set[Any]]]:
    if isinstance(config, list):
        for each in config:
            yield from _null_arguments(each)
    if not isinstance(config, Namespace):
        return
    path, given = config.get("class_path"), config.get("init_args")
    if isinstance(path, str) and isinstance(given, Namespace):
        known = parameters(import_object(path))
        for name, value in vars(given).items():
            kind, needed = known.get(name, (Any, False))
            kinds = kinds_of(kind)
            if value is None and not needed and not {type(None), Any, Literal, object} & kinds:
                yield name, kinds
    for value in vars(config).values():
        yield from _null_arguments(value)
