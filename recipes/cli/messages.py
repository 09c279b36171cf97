"""Shortens the parser's messages to one line, with the word that was probably meant."""

import inspect
import re
import sys
from collections.abc import Iterator

from jsonargparse import ArgumentParser

from datamodules import ImageDataModule
from recipes.base.imports import class_named, refusal
from recipes.errors import nearest

_TYPES = {
    "NoneType": "null",
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "a mapping",
}
_KINDS = {"AnyRecipe": "a recipe (a class that inherits from recipes.Recipe)"}
_SLOTS = {  # the classes that an argument of this name takes
    "model": ["recipes.Recipe"],
    "data": ["datamodules.ImageDataModule"],
    "encoder": ["recipes.nn.Encoder"],
    "views": ["recipes.augment.Views"],
    "optimizer": ["torch.optim.Optimizer"],
    "scheduler": ["torch.optim.lr_scheduler.LRScheduler"],
    "callbacks": ["lightning.pytorch.callbacks.Callback"],
    "logger": ["lightning.pytorch.loggers.Logger"],
}
_QUOTE = ". YAML reads words such as yes, no, on and 1e3 as other values: put the text in quotes"
_VALUE = r"(?:Got|Given) value: (.*?)(?:\. Got value|$)"


def one_line(message: str, parser: ArgumentParser) -> str:
    """Shortens a message of the parser to the argument, the value, the allowed range and the remedy."""
    for rule in (refusal, _import_problem, _wrong_kind, _unknown_argument, _ambiguous, _missing_argument):
        if words := rule(message):
            return words
    if found := re.findall(r"unrecognized arguments: --([^\s=]+)", message) or re.findall(
        r"does not accept option '([^']+)'", message
    ):
        return f"there is no option {found[0]!r}{nearest(found[0], _options(parser))}; see --help"
    return _wrong_value(message) or _without_dumps(message)


def missing_package(message: str) -> str | None:
    """What to do about a logger that cannot be created, because its package is not installed; None for other errors."""
    found = re.search(r"class_path '(lightning\.pytorch\.loggers\.[\w.]+)':\s+([^\n]+)", message)
    if found is None:
        return None
    name, reason = found[1].rpartition(".")[2], found[2].rstrip(".")
    return (
        f"trainer.logger is {name}, which cannot be created: {reason}. Install its package, or choose another logger; "
        "metrics.csv is written without any"
    )


def _import_problem(message: str) -> str | None:
    """The first class in a message that cannot be imported, with the reason."""
    for path in dict.fromkeys(re.findall(r"class_path'?[ =:]+'(\w+(?:\.\w+)+)'", message)):
        try:
            class_named(path)
        except (ImportError, ValueError) as error:
            return str(error)
    return None


def _wrong_kind(message: str) -> str | None:
    """A class that is none of those which an argument takes."""
    found = re.findall(r"Import path ([\w.]+) does not correspond to a subclass of (\w+)", message)
    found += re.findall(r"Expected '([\w.]+)' to be a subclass of <class '(?:\w+\.)*(\w+)'>", message)
    found += re.findall(r"Expected '([\w.]+)' to be a function that returns <class '(?:\w+\.)*(\w+)'>", message)
    if not found:
        return None
    path, kind = found[-1]
    *_, key = re.findall(r'Parser key "([\w.]+)"', message) or ["class_path"]
    return f"{key} is {path}: it must be {_KINDS.get(kind, f'a class that inherits from {kind}')}"


def _unknown_argument(message: str) -> str | None:
    found = re.findall(r"class_path '([\w.]+)':\s+Option '([\w.]+)' is not accepted", message)
    callables = r"Option '([\w.]+)' is not accepted\. Got value: Namespace\(class_path='([\w.]+)'"
    found += [(path, option) for option, path in re.findall(callables, message)]
    if not found:
        return None
    path, option = found[-1]
    name = path.rpartition(".")[2]
    known = _arguments(path)
    words = f"{name} has no argument {option!r}{nearest(option, known)}; "
    folders = _arguments("datamodules.ImageFolder")
    if issubclass(_imported(path), ImageDataModule) and "base" in known and option in folders:
        return words + f"for other images, add --data ImageFolder; for those of {name}, set --data.base.{option}"
    return words + "see --model.help or --data.help"


def _ambiguous(message: str) -> str | None:
    """A short name that several classes have, with their paths and what each needs."""
    found = re.search(r"Multiple subclasses with name (\w+)\..*?ambiguity: ([\w., ]+)\.", message)
    if not found:
        return None
    key = (re.findall(r'Parser key "([\w.]+)"', message[: found.start()]) or ["class_path"])[-1]
    choices = []
    for path in found[2].split(", "):
        known = list(inspect.signature(_imported(path)).parameters.values())[1:]  # not its subject
        needed = [each.name for each in known if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
        choices.append(f"{path} (needs a value for {', '.join(needed)})" if needed else path)
    return f"{key} is {found[1]}, which several classes are called: give the path of one, {' or '.join(choices)}"


def _missing_argument(message: str) -> str | None:
    of_callable = re.findall(
        r"callable class: the following arguments are required: ([\w., ]+)\s[^\x00]*?"
        r"Given value: Namespace\(class_path='([\w.]+)'",
        message,
    )
    if of_callable:
        missing, path = of_callable[-1]
        return f"{path.rpartition('.')[2]} needs a value for {missing}"
    if found := re.findall(r"class_path '([\w.]+)':\s+the following arguments are required: ([\w., ]+)", message):
        path, missing = found[-1]
        return f"{path.rpartition('.')[2]} needs a value for {missing}"
    if found := re.findall(r"required: (?:\w+\.)?(model|data)\b", message):
        return f"no {found[0]} given: choose a config (--config simclr-digits) or name one (--{found[0]} ...)"
    return None


def _wrong_value(message: str) -> str | None:
    """The innermost argument whose value has the wrong type."""
    found = re.findall(r'Parser key "([\w.]+)":((?:(?!Parser key).)*)', message, re.S)
    if not found:
        return None
    key, rest = found[-1]
    # the text after the value is about the arguments around this one
    rest = "".join(re.split(r"((?:Got|Given) value: [^\n]*)", rest, maxsplit=1)[:2])
    types = [_TYPES.get(name, name) for name in re.findall(r"Expected a <class '([\w.]+)'>", rest)]
    types += re.findall(r"Expected a typing\.Literal\[([^]]*)\]", rest)
    word = re.search(r"dot import path string: (\S+)", rest)
    if word and (not set(types) - {"null"} or key.rpartition(".")[2] in _SLOTS):
        return _no_such_class(key, word[1])
    given = re.search(_VALUE, rest, re.M)
    if types and given and not given[1].startswith("{'class_path'"):
        quote = _QUOTE if "a string" in types and re.fullmatch(r"[\d.eE+-]+|True|False|\[.*\]", given[1]) else ""
        return f"{key} is {given[1]}: it must be {' or '.join(dict.fromkeys(types))}{quote}"
    return None


def _no_such_class(key: str, word: str) -> str:
    """What to tell the user of a word that names no class: the nearest name of a class that the argument takes."""
    slot = key.rpartition(".")[2]
    kinds = tuple(map(_imported, _SLOTS.get(slot, ())))
    known = {name for name, value in _classes() if not kinds or issubclass(value, kinds)}
    shown = "'recipes list' shows all names" if slot in ("model", "data") else "give the name of a class"
    if kinds and slot not in ("model", "data"):
        shown = f"it must be a class that inherits from {' or '.join(kind.__name__ for kind in kinds)}"
    return f"{key}: there is no {word!r}{nearest(word, known)}; {shown}"


def _without_dumps(message: str) -> str:
    """A message in one line, without the values and types that the parser repeats at each level."""
    message = re.sub(r"(?:Got|Given) value(?: type)?: [^\n]*", "", message)
    message = re.sub(r"Does not validate against any of the Union subtypes\s+Subtypes: [^\n]*\s+Errors:", "", message)
    message = re.sub(r"- Expected a <class 'NoneType'>", "", message)
    return re.sub(r"(Parser key \"[\w.]+\":|:) +- ", r"\1 ", " ".join(message.split()))


def _arguments(path: str) -> list[str]:
    from jsonargparse._util import import_object

    return list(inspect.signature(import_object(path).__init__).parameters)[1:]


def _classes() -> Iterator[tuple[str, type]]:
    """The classes that are known by their short names."""
    import torch
    from lightning.pytorch import callbacks, loggers, plugins, profilers, strategies

    import datamodules
    import losses
    import recipes
    from recipes import callbacks as running_callbacks

    ours = (recipes, datamodules, losses, recipes.nn, recipes.augment, recipes.optim, recipes.distillation)
    theirs = (torch.optim, torch.optim.lr_scheduler, callbacks, loggers, plugins, profilers, strategies)
    for module in (*ours, running_callbacks, *theirs):
        yield from ((name, value) for name, value in vars(module).items() if inspect.isclass(value))


def _imported(path: str) -> type:
    from jsonargparse._util import import_object

    found: type = import_object(path)
    return found


def _options(parser: ArgumentParser) -> Iterator[str]:
    import recipes

    yield from (option.lstrip("-") for action in parser._actions for option in action.option_strings)
    for name in recipes.__all__:
        if inspect.isclass(value := getattr(recipes, name)):
            yield from (f"model.{argument}" for argument in list(inspect.signature(value.__init__).parameters)[1:])


class Refused(SystemExit):
    """Leaves the process with code 2, because of a mistake in the command line."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = 2


def report(message: str, place: str = "") -> None:
    """Prints one line about an error.

    Args:
        message: what was wrong, in one line.
        place: process of the run in which it happened, if there are several.
    """
    sys.stderr.write(f"recipes: error: {place and f'{place}: '}{' '.join(message.split())}\n")
    sys.stderr.flush()
