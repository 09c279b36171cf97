"""What becomes of the options of an object when another class is chosen for it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace, _typehints
from jsonargparse._util import import_object

from datamodules import ImageDataModule
from recipes.base.recipe import AnyRecipe
from recipes.nn import Encoder


@contextmanager
def own_defaults() -> Iterator[None]:
    """While it lasts, a class that is chosen in a config or on the command line starts from its own defaults.

    jsonargparse hands all arguments of the class before on to the new class if it accepts them, also those that are
    only the defaults of a recipe: AdamW would get the learning rate of SGD. A recipe or a DataModule keeps the values
    that differ from the defaults of the class before, an encoder keeps the number of channels.
    """
    before = _typehints.discard_init_args_on_class_path_change

    def discard(parser_or_action: Any, prev_val: Any, value: Any) -> None:
        before(parser_or_action, prev_val, value)
        if prev_val and "init_args" in prev_val and prev_val["class_path"] != value["class_path"]:
            prev_val = _typehints.subclass_spec_as_namespace(prev_val)
            kept = _kept(prev_val.class_path, prev_val.init_args)
            for name in list(vars(prev_val.init_args)):
                if name not in kept:
                    prev_val.init_args.pop(name)

    _typehints.discard_init_args_on_class_path_change = discard
    try:
        yield
    finally:
        _typehints.discard_init_args_on_class_path_change = before


def _kept(class_path: str, arguments: Namespace) -> set[str]:
    """The arguments of the class before that the new class gets, if it accepts them."""
    found = import_object(class_path)
    if issubclass(found, Encoder):
        return {"in_channels"}  # a property of the images
    if issubclass(found, AnyRecipe | ImageDataModule):
        defaults = _typehints.ActionTypeHint.get_class_parser(found, {}).get_defaults()
        return {name for name, value in vars(arguments).items() if defaults.get(name) != value}
    return set()


def class_changes(args: Sequence[str], config: Any) -> Iterator[str]:
    """Finds the options that were given for an object before another class was chosen for it.

    Args:
        args: arguments of the command: ``--config`` with files or YAML, and options.
        config: parsed configuration, as plain values.

    Yields:
        For each object that has lost options, one line: which options are dropped, and which are kept.
    """
    final = dict(_flat(config))
    given: dict[str, Any] = {}
    before: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, value in _options(args):
        if isinstance(final.get(name), _ClassName) and isinstance(value, str):
            value = _ClassName(value)
            if name in given and given[name] != value:
                inner = [option for option in given if option.startswith(f"{name}.")]
                before[name] = given[name], {option: given.pop(option) for option in inner}
        given[name] = value
    for name, (old, options) in before.items():
        kept, dropped = [], []
        for option, value in options.items():
            own = option.removeprefix(f"{name}.")
            if "." in own or option in given:
                continue
            held = option in final and str(final[option]) == str(value)
            kept.append(own) if held else dropped.append(f"{own} ({value})")
        if dropped:
            rest = f"; kept: {', '.join(kept)}" if kept else ""
            yield f"{name} is {final[name]}, no longer {old}: dropped: {', '.join(dropped)}{rest}"


class _ClassName(str):
    """The name of a class, without its module."""

    def __new__(cls, path: str) -> "_ClassName":
        return super().__new__(cls, path.rpartition(".")[2])


def _options(args: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The options of the command as names and values, those in configs too; of an object first its class."""
    words = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--") else [arg])]
    for option, value in zip(words, words[1:]):
        name = option.removeprefix("--").replace(".init_args.", ".")
        if not option.startswith("--") or value.startswith("--"):
            continue
        if name == "config":
            yield from _flat(_yaml(Path(value).read_text() if _is_file(value) else value))
        else:
            content = _yaml(value)
            yield from _flat(content if isinstance(content, Mapping) else value, name)


def _is_file(text: str) -> bool:
    return "\n" not in text and Path(text).is_file()


def _yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _flat(config: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The names and values of a configuration, without ``init_args``."""
    if isinstance(config, Mapping) and "class_path" in config:
        yield name, _ClassName(str(config["class_path"]))
        config = {**(config.get("init_args") or {}), **(config.get("dict_kwargs") or {})}
    if not isinstance(config, Mapping):
        yield name, config
        return
    for key, value in config.items():
        yield from _flat(value, f"{name}.{key}" if name else str(key))
