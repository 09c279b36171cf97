"""Turns the user's arguments into those of the parser: names of configs, run directories, and imports."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from datamodules.sources.names import printable
from recipes.base.checkpoint import check_checkpoint, checkpoint_path, config_of, without_weights
from recipes.base.imports import import_named
from recipes.base.texts import mapping_from_yaml, text_of
from recipes.cli.catalogue import config_file

IMPORT_HELP = "Python file or module with classes of your own, such as simsiam.py; may be given several times"
_OF_LIGHTNING = ("last", "best", "hpc")  # checkpoints that Lightning finds for a run that is started once more
_PATH_OPTIONS = ("-c=", "--config=", "--ckpt_path=")


class Prepared(NamedTuple):
    """Arguments as the parser takes them.

    Attributes:
        args: of the command, beginning with its name.
        of_checkpoint: whether the configuration comes out of a checkpoint, so that it may not import anything.
    """

    args: list[str]
    of_checkpoint: bool


def taken_imports(args: list[str]) -> tuple[list[str], list[str]]:
    """Takes every ``--import NAME`` out of the arguments: returns the others, and the names.

    Raises:
        ValueError: if a name is missing, or if an argument is no text that a configuration file can hold.
    """
    for arg in args:
        _check_text(arg)
    others: list[str] = []
    names: list[str] = []
    parts = iter(args)
    for arg in parts:
        option, equals, name = arg.partition("=")
        if option not in ("--import", "--import+"):
            others.append(arg)
            continue
        name = name if equals else next(parts, "")
        if not name or name.startswith("--"):
            raise ValueError("--import needs a value: give a Python file or the name of a module")
        names.append(name)
    return others, names


def _check_text(arg: str) -> None:
    try:
        arg.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{printable(arg)} is not UTF-8 text: rename the file or folder, or make a link to it (ln -s) with another "
            "name"
        ) from error


def config_folders(args: list[str]) -> list[Path]:
    """The folders of the config files that the user passes, in their order; a packaged config has none."""
    words = _split(args)
    given = [Path(value).expanduser() for option, value in zip(words, words[1:]) if option in ("-c", "--config")]
    return [path.parent for path in given if path.is_file()]


def prepared(args: list[str], imports: Sequence[str] = ()) -> Prepared:
    """Resolves config names and run directories, and puts a checkpoint's own configuration before the options.

    The modules that ``import`` in a config names are imported; a checkpoint cannot name any.

    Args:
        args: of the command.
        imports: names of modules that the command line gives, which are imported already.
    """
    args = _split(args)
    named = any(re.match(r"(-c|--config|--model)($|=)", arg) for arg in args)
    first: list[str] = []
    last = list(imports)
    of_checkpoint = False
    for place in range(1, len(args)):
        option, value = args[place - 1 : place + 1]
        if option in ("-c", "--config"):
            file = config_path(value)
            args[place] = str(file)
            first = first or ["--name", Path(value).stem]
            last += _imports_of(file)
        elif option == "--ckpt_path" and not (args[0] == "fit" and value in _OF_LIGHTNING):
            args[place] = str(checkpoint_path(value, resume=args[0] == "fit"))
            if not any(
                arg.startswith("--weights_only") for arg in args
            ):  # the user may trust a checkpoint with objects
                check_checkpoint(args[place])
            if not named:
                of_checkpoint = True
                config = config_of(args[place])
                if args[0] != "fit":  # the weights of the checkpoint are all that counts
                    config["model"] = without_weights(config["model"])
                    config.pop("health", None)  # what the training did about weights that are not finite
                first = ["--config", yaml.safe_dump(config)]
    if args[1:2] != ["--help"] and args[-1] == "--help" and "--model" in args[:-2]:
        return Prepared([args[0], "--model.help", args[args.index("--model") + 1]], False)
    for option, value in zip(args, args[1:]):
        if option in ("--model.help", "--data.help"):  # nothing else counts, and the imports are done
            return Prepared([args[0], option, value], False)
    end = ["--import", json.dumps(list(dict.fromkeys(last)))] if last else []
    return Prepared([args[0], *first, *args[1:], *end], of_checkpoint)


def _imports_of(file: Path) -> list[str]:
    """Imports the modules that a config names, and returns their names as the command line would give them."""
    given = mapping_from_yaml(text_of(file), f"the config {file}").get("import")
    names = [given] if isinstance(given, str) else given or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"import is {given} in {file}: it must be a Python file or a module name, or a list of them")
    for place, name in enumerate(names):
        import_named(name, folders=(file.parent, "."))
        if name.endswith(".py") and (file.parent / name).is_file():
            names[place] = os.path.relpath(file.parent / name)
    return names


def config_path(name: str) -> Path:
    """The YAML file that a name means: a path, or a packaged config.

    Raises:
        FileNotFoundError: if it is neither.
    """
    path = Path(name).expanduser()
    return path if path.is_file() else config_file(name)


def _split(args: list[str]) -> list[str]:
    """The arguments with those of the form ``--config=NAME`` in two."""
    return [part for arg in args for part in (arg.split("=", 1) if arg.startswith(_PATH_OPTIONS) else [arg])]
