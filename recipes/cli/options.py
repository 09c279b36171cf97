"""Checks of options whose errors would otherwise come late, or out of a library."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import strategies
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from recipes.base.imports import class_named
from recipes.base.strategies import check_strategy, strategy_names
from recipes.errors import check_at_least, nearest

_LONGEST_NAME = 255  # bytes: limit of Linux file systems
_LARGEST_SEED = 2**32 - 1  # of NumPy


def check_options(config: Any) -> None:
    """Checks the name and folder of a run, the seed, and the options that choose the machine.

    Raises:
        ValueError: if one is out of its range.
    """
    check_seed(config.seed_everything, "seed_everything")
    check_name(config.name)
    check_folder(config.runs)
    trainer = config.trainer
    numbers = {f"trainer.{name}": trainer[name] for name in ("accumulate_grad_batches", "num_nodes")}
    check_at_least(1, **numbers, **{"trainer.check_val_every_n_epoch": trainer.check_val_every_n_epoch})
    check_at_least(1, **{f"checkpoint.{name}": value for name, value in vars(config.checkpoint).items()})
    check_at_least(0, **{f"trainer.{name}": trainer[name] for name in ("gradient_clip_val", "log_every_n_steps")})
    _check_word(
        "trainer.accelerator", trainer.accelerator, ["auto", "gpu", *AcceleratorRegistry.available_accelerators()]
    )
    _check_strategy(trainer.strategy)
    _check_devices(trainer.devices)


def check_seed(seed: Any, name: str = "seed") -> None:
    """Checks a seed; true and false stand for a random seed and for none.

    Raises:
        ValueError: if the seed is out of its range.
    """
    if isinstance(seed, int) and not 0 <= seed <= _LARGEST_SEED:
        raise ValueError(f"{name} is {seed}: it must be between 0 and {_LARGEST_SEED}")


def check_name(name: str | None) -> None:
    """Checks the name of a run, which is a folder within the folder of all runs.

    Raises:
        ValueError: if the name is no such folder.
    """
    if name is None:
        return
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or name.startswith("~") or not name.isprintable():
        raise ValueError(f"name is {name!r}: it must be the name of a folder within --runs, such as my-run")
    if any(len(os.fsencode(part)) > _LONGEST_NAME for part in path.parts):
        raise ValueError(f"name has {len(name)} characters: a folder's name has at most {_LONGEST_NAME} bytes")


def check_folder(runs: str) -> None:
    """Checks the folder of all runs.

    Raises:
        ValueError: if it is empty.
    """
    if not runs.strip():
        raise ValueError("runs is empty: it must be a folder, such as runs, or . for the current one")


def with_homes(config: Any) -> Any:
    """A parsed configuration in which ``~/`` at the start of a text stands for the home folder, whatever the option."""
    if isinstance(config, Namespace):
        return Namespace({key: with_homes(value) for key, value in vars(config).items()})
    if isinstance(config, list):
        return [with_homes(value) for value in config]
    return os.path.expanduser(config) if isinstance(config, str) and re.match(r"~[\w.-]*(/|$)", config) else config


@contextmanager
def trainer_errors() -> Iterator[None]:
    """Reports in words what Lightning raises for options of the Trainer.

    Raises:
        ValueError: if the Trainer cannot be created.
    """
    try:
        yield
    except (TypeError, ValueError, KeyError, RuntimeError, ImportError, MisconfigurationException) as error:
        reason = " ".join(str(error).split()).rstrip(".!")
        raise ValueError(
            f"the Trainer cannot be created: {reason}. Change the options trainer.*; see --help"
        ) from error


def _check_word(name: str, given: Any, known: Sequence[str]) -> None:
    if isinstance(given, str) and given.lower() not in known:
        raise ValueError(f"{name} is {given}{nearest(given, known)}: it must be one of {', '.join(sorted(known))}")


def _check_strategy(given: Any) -> None:
    """Refuses strategies that recipes cannot have, and those for notebooks, which start functions and not commands."""
    option = "trainer.strategy"
    if isinstance(given, str):
        of_name = getattr(strategies, given, None)
        check_strategy(of_name if isinstance(of_name, type) else given, option)
        arguments, name = _registered_arguments(given), given
        known = [each for each in strategy_names() if _is_started_by_command(_registered_arguments(each))]
        _check_word(option, given, [*known, given] if arguments else known)
    else:
        check_strategy(class_named(given.class_path), option)
        arguments, name = given.get("init_args", {}), given.class_path.rpartition(".")[2]
    if not _is_started_by_command(arguments):
        raise ValueError(
            f"{option} is {name}, which starts processes by {arguments['start_method']}, for notebooks: it must be "
            "ddp, which starts the command once for each device"
        )


def _is_started_by_command(arguments: Any) -> bool:
    return bool(arguments.get("start_method", "popen") == "popen")


def _registered_arguments(strategy: str) -> Any:
    return StrategyRegistry[strategy]["init_params"] if strategy in StrategyRegistry else {}


def _check_devices(given: Any) -> None:
    numbers = given if isinstance(given, list) else str(given).split(",")
    words = [str(number).strip() for number in numbers]
    few = len(words) == 1 and not isinstance(given, list)
    if words == ["auto"] or (few and words == ["-1"]) or (words and all(map(str.isdigit, words)) and words != ["0"]):
        return
    if isinstance(given, list) and words == ["0"]:
        return
    raise ValueError(
        f"trainer.devices is {given}: it must be auto, -1 for all devices, a number of devices above 0, or a list of "
        "their indices"
    )
