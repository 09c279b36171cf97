"""What a user typed, made into what the parser takes: names of configs, and directories of runs."""

import re
from pathlib import Path

import yaml

from recipes.base.checkpoint import checkpoint_path, config_of, without_weights
from recipes.cli.catalogue import config_file

_PATH_OPTIONS = ("-c=", "--config=", "--ckpt_path=")


def prepared(args: list[str]) -> list[str]:
    """Resolves config names and run directories, and puts a checkpoint's own configuration before the options."""
    args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith(_PATH_OPTIONS) else [arg])]
    named = any(re.match(r"(-c|--config|--model)($|=)", arg) for arg in args)
    first: list[str] = []
    for place in range(1, len(args)):
        option, value = args[place - 1 : place + 1]
        if option in ("-c", "--config"):
            args[place] = str(config_path(value))
            first = first or ["--name", Path(value).stem]
        elif option == "--ckpt_path" and value not in ("last", "best", "hpc"):
            args[place] = str(checkpoint_path(value))
            if not named:
                config = config_of(args[place])
                if args[0] != "fit":  # the weights of the checkpoint are all that counts
                    config["model"] = without_weights(config["model"])
                first = ["--config", yaml.safe_dump(config)]
    if args[1:2] != ["--help"] and args[-1] == "--help" and "--model" in args[:-2]:
        return [args[0], "--model.help", args[args.index("--model") + 1]]
    return [args[0], *first, *args[1:]]


def config_path(name: str) -> Path:
    """The YAML file that a name means: a path, or a packaged config.

    Raises:
        FileNotFoundError: if it is neither.
    """
    return Path(name) if Path(name).is_file() else config_file(name)
