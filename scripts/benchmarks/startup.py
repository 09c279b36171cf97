"""How long 'recipes --help' takes, against importing lightning.pytorch and torchvision; the commands take turns."""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import medians, ratio, take_turns, versions

COMMANDS = {
    "recipes --help": [sys.executable, "-m", "recipes", "--help"],
    "recipes fit --help": [sys.executable, "-m", "recipes", "fit", "--help"],
    "import": [sys.executable, "-c", "import lightning.pytorch, torchvision"],
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="how often each command takes its turn")


def run(options: argparse.Namespace) -> dict[str, Any]:
    seconds = take_turns({name: _timed(command) for name, command in COMMANDS.items()}, options.rounds)
    return {
        "task": "start-up time in seconds, the commands taking turns",
        "seconds": seconds,
        "median": medians(seconds),
        "median_ratio_to_import": {name: ratio(seconds, name, "import") for name in seconds if name != "import"},
        "versions": versions("torchvision", "lightning"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    value = result["median_ratio_to_import"]["recipes --help"]
    return [["`recipes --help`", "`import lightning.pytorch, torchvision`", f"{value:.2f} times its time"]]


def _timed(command: list[str]) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return time.perf_counter() - start

    return once
