"""A training step of every recipe, against that of an earlier commit.

One config ``*-digits`` of each recipe that takes steps runs for some steps with both codes, in two processes that take
turns, so that a busy machine is busy for both. A step is the time from one step of the optimiser to the next, data and
logging included.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.collectives import OF_DATA, TEACHER, of_recipes, packaged
from benchmarks.common import ROOT, checked_out, medians, quiet, ratio, take_turns, versions

OPTIONS = {
    "trainer.accelerator": "cpu",
    "trainer.limit_val_batches": 0,
    "trainer.limit_test_batches": 0,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "data.batch_size": 64,
    "trainer.callbacks": "benchmarks._seconds.Seconds",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", required=True, help="the earlier commit")
    parser.add_argument("--configs", nargs="*", help="configs to run; without it, one *-digits of each recipe")
    parser.add_argument("--steps", type=int, default=36, help="steps of a run, of which the first are not timed")
    parser.add_argument("--rounds", type=int, default=5, help="how often both take their turn")


def run(options: argparse.Namespace) -> dict[str, Any]:
    names = options.configs or of_recipes()
    found = {}
    with checked_out(options.before) as code, tempfile.TemporaryDirectory() as folder:
        before = _Process(code, Path(folder) / "before", options.steps)
        now = _Process(ROOT, Path(folder) / "now", options.steps)
        for process in (before, now):
            process.seconds(TEACHER)
        for name in names:
            both = {"before": partial(before.seconds, name), "now": partial(now.seconds, name)}
            runs = take_turns(both, options.rounds)
            found[name] = {key: round(seconds, 5) for key, seconds in medians(runs).items()}
            found[name]["ratio"] = ratio(runs, "now", "before")
        for process in (before, now):
            process.end()
    ratios = [each["ratio"] for each in found.values()]
    return {
        "task": f"median seconds of a training step of {options.steps}, batch 64, one CPU thread",
        "commit_before": options.before,
        "rounds": options.rounds,
        "recipes": found,
        "median_ratio": round(statistics.median(ratios), 3),
        "largest_ratio": max(ratios),
        "versions": versions("lightning"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    what = f"training step of {len(result['recipes'])} recipes on the digits, median of the recipes"
    return [[what, f"the step at commit {result['commit_before'][:7]}", f"{result['median_ratio']:.2f} times its time"]]


class _Process:
    """Runs configs with the code of a checkout, one when it is asked to."""

    def __init__(self, code: Path, folder: Path, steps: int) -> None:
        folder.mkdir()  # without code of its own, which would come first
        environment = {**os.environ, "PYTHONPATH": f"{code}:{ROOT / 'scripts'}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.earlier", str(folder), str(steps)]
        self._process = subprocess.Popen(
            command, env=environment, cwd=folder, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def seconds(self, name: str) -> float:
        assert self._process.stdin
        assert self._process.stdout
        print(name, file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("seconds "):
                return float(line.split()[1])
        raise SystemExit("a run failed: its message is above")

    def end(self) -> None:
        self._process.communicate()


def _run_each(folder: Path, steps: int) -> None:
    """Runs the configs whose names are given line by line, and prints the seconds of a step of each."""
    import torch

    from benchmarks._seconds import Seconds
    from recipes.cli import main
    from recipes.cli.run_directory import RUN_DIRECTORY

    torch.set_num_threads(1)
    quiet()
    for line in sys.stdin:
        name = line.strip()
        config = packaged(name)
        options: dict[str, Any] = {"config": name, "runs": folder / "runs", "trainer.max_steps": steps, **OPTIONS}
        if "teacher" in config["model"].get("init_args", {}):
            options["model.teacher"] = max((folder / "runs" / TEACHER).glob("*/checkpoints/last.ckpt"))
        options |= OF_DATA.get(config["data"]["class_path"].rpartition(".")[2], {})
        os.environ.pop(RUN_DIRECTORY, None)
        main(["fit", *(f"--{option}={value}" for option, value in options.items())])
        print("seconds", Seconds.last, flush=True)


if __name__ == "__main__":
    _run_each(Path(sys.argv[1]), int(sys.argv[2]))
