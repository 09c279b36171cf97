"""Reads YAML and JSON that may be damaged or hostile: in bounded time, and with errors of one line."""

import json
from pathlib import Path
from typing import Any

import yaml

_LONGEST = 1_000_000  # characters; the largest packaged config has 3,000
_DEEPEST = 50  # levels; a configuration has about 10
_MOST = 100_000  # values, aliases counted as often as they are used


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Builds plain values. Dates stay text, as they do for the command's parser."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def mapping_from_yaml(text: Any, source: str) -> dict[str, Any]:
    """Parses YAML whose top level is a mapping.

    Args:
        text: the YAML. It may be anything, because it may come from a file of a stranger.
        source: name of the text in messages, such as "the configuration in last.ckpt".

    Raises:
        ValueError: if the text is no such mapping, or larger or deeper than a configuration can be.
    """
    if not isinstance(text, str):
        raise ValueError(f"{source} is not text")
    if len(text) > _LONGEST:
        raise ValueError(f"{source} has {len(text):,} characters: it must have at most {_LONGEST:,}")
    try:
        _check_size(text)
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not valid YAML: {_in_words(error)}") from None
    except (ValueError, OverflowError) as error:  # a number with too many digits
        raise ValueError(f"{source} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ValueError(f"{source} must be a mapping of names to values, not {_kind(value)}")
    return value


def mapping_from_json(path: Path, source: str) -> dict[str, Any]:
    """Reads a JSON file whose top level is an object.

    Args:
        path: the file.
        source: name of the file in messages.

    Raises:
        ValueError: if the file holds something else, for example because it was cut.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"{source} is not complete JSON") from None
    if not isinstance(value, dict):
        raise ValueError(f"{source} must hold a JSON object, not {_kind(value)}")
    return value


def text_of(path: Path) -> str:
    """Reads a text file.

    Raises:
        ValueError: if the file is no text in UTF-8, or larger than a configuration can be.
        OSError: if the file cannot be read.
    """
    with path.open("rb") as file:  # never more than this: the file may be a device without an end
        content = file.read(4 * _LONGEST + 1)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not a text file in UTF-8: give a YAML file") from None


def _check_size(text: str) -> None:
    """Follows the parser's events, which takes no recursion and expands no alias."""
    sizes: dict[str, int] = {}  # of the values that have an anchor
    open_values: list[tuple[str | None, int]] = [(None, 0)]  # anchor, and the number of values before it
    total = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"the alias *{event.anchor} has no complete value before it")
            total += sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_values.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_values.pop()
            if anchor:
                sizes[anchor] = total - before
        if len(open_values) > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        if total > _MOST:
            raise ValueError(f"it has more than {_MOST:,} values")


def _in_words(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
    return " ".join(f"{problem}{place}".split())


def _kind(value: Any) -> str:
    return {list: "a list", type(None): "null", dict: "a mapping with other keys"}.get(type(value), "a single value")
