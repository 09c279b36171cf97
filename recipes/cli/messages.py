"""The parser's messages, said in one line with the word that was probably meant."""

import inspect
import re
import sys
from collections.abc import Iterator
from typing import NoReturn

from jsonargparse import ArgumentParser

from recipes.cli.run_directory import is_first
from recipes.errors import nearest

_TYPES = {"NoneType": "null", "str": "a string"}


def one_line(message: str, parser: ArgumentParser) -> str:
    """Shortens a message of the parser to what was given, what is allowed, and what to do."""
    if found := re.findall(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message):
        path, option = found[-1]
        name = path.rpartition(".")[2]
        return f"{name} has no argument {option!r}{nearest(option, _arguments(path))}; see --model.help or --data.help"
    if found := re.findall(r"class_path '([\w.]+)':\s+the following arguments are required: ([\w., ]+)", message):
        path, missing = found[-1]
        return f"{path.rpartition('.')[2]} needs a value for {missing}"
    if found := re.findall(r"class_path '([\w.]+)':\s+module '[\w.]+' has no attribute", message):
        return f"there is no class {found[-1]!r}{nearest(found[-1].rpartition('.')[2], _class_names())}"
    if found := re.findall(r"required: (?:\w+\.)?(model|data)\b", message):
        return f"no {found[0]} given: choose a config (--config simclr-digits) or name one (--{found[0]} ...)"
    if found := re.findall(r"unrecognized arguments: --([^\s=]+)", message) or re.findall(
        r"does not accept option '([^']+)'", message
    ):
        return f"there is no option {found[0]!r}{nearest(found[0], _options(parser))}; see --help"
    if found := re.findall(r'Parser key "([\w.]+)":((?:(?!Parser key).)*)', message, re.S):
        key, rest = found[-1]
        # what follows the value is said of the keys around this one
        rest = "".join(re.split(r"((?:Got|Given) value: [^\n]*)", rest, maxsplit=1)[:2])
        types = [_TYPES.get(name, name) for name in re.findall(r"Expected a <class '([\w.]+)'>", rest)]
        types += re.findall(r"Expected a typing\.Literal\[([^]]*)\]", rest)
        word = re.search(r"dot import path string: (\S+)", rest)
        if word and not set(types) - {"null"}:
            meant = nearest(word[1], _class_names())
            return f"{key}: there is no {word[1]!r}{meant}; 'recipes list' shows what there is"
        given = re.search(r"(?:Got|Given) value: (.*?)(?:\. Got value|$)", rest, re.M)
        if types and given:
            return f"{key} is {given[1]!r}: it must be {' or '.join(types)}"
    return " ".join(message.split())


def _arguments(path: str) -> list[str]:
    from jsonargparse._util import import_object

    return list(inspect.signature(import_object(path).__init__).parameters)[1:]


def _class_names() -> Iterator[str]:
    import torch

    import datamodules
    import losses
    import recipes

    ours = (recipes, datamodules, losses, recipes.nn, recipes.augment, recipes.optim, recipes.distillation)
    for module in (*ours, torch.optim, torch.optim.lr_scheduler):
        yield from (name for name, value in vars(module).items() if inspect.isclass(value))


def _options(parser: ArgumentParser) -> Iterator[str]:
    import recipes

    yield from (option.lstrip("-") for action in parser._actions for option in action.option_strings)
    for name in recipes.__all__:
        if inspect.isclass(value := getattr(recipes, name)):
            yield from (f"model.{argument}" for argument in list(inspect.signature(value.__init__).parameters)[1:])


def fail(message: str) -> NoReturn:
    """Prints one line and ends the process with code 2."""
    if is_first():
        sys.stderr.write(f"recipes: error: {' '.join(message.split())}\n")
    raise SystemExit(2)
