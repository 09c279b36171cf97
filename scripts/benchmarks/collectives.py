"""What two processes exchange in a training step of every recipe, against what they have to.

One config ``*-digits`` of each recipe that takes steps runs for two short epochs, or two tasks, on two processes that
gloo joins. For the steps between two logged steps, and for a logged step, the result has the exchanges of one process:
how many there are, how many bytes the process sends, and how often it stands in a barrier, by what they are for:

- ``gradients``: DDP's mean; ``parameters`` are the bytes of the trainable parameters, which it has to send.
- ``batch norm``, ``buffers`` and ``the method``: statistics, running statistics, and what a recipe gathers.
- ``agreement on stopping``: a few bytes beside the training, so that all processes stop together. Lightning has a
  broadcast for this (``Lightning's signals``), which the host waits for; the command does without it.
- ``logging``: expected on logged steps only, in one exchange without a barrier.

These are counts, which do not vary, so --rounds has no influence. With --before, the code of an earlier commit is
measured too, in a temporary worktree.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import ROOT, checked_out, quiet, versions

TEACHER = "supervised-digits"
EPOCH, STEPS, LOGGED = 6, 12, 8  # of two epochs; the second begins with step 7, whose values may be new
BETWEEN = (9, 10, 11)
OPTIONS = {
    "trainer.accelerator": "cpu",
    "trainer.devices": 2,
    "trainer.strategy": "ddp",
    "trainer.max_steps": STEPS,
    "trainer.limit_train_batches": EPOCH,
    "data.batch_size": 32,
    "trainer.limit_val_batches": 0,
    "trainer.limit_test_batches": 0,
    "trainer.log_every_n_steps": LOGGED,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.callbacks": "benchmarks._exchanges.Exchanges",
}
OF_DATA = {  # so that an epoch has more than ``EPOCH`` batches, and a task is an epoch
    "TaskSequence": {"data.epochs_per_task": 1},
    "SemiSupervised": {"data.labelled_per_batch": 8},
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=1, help="without influence")
    parser.add_argument("--configs", nargs="*", help="configs to run; without it, one *-digits of each recipe")
    parser.add_argument("--before", help="commit that is measured too")


def run(options: argparse.Namespace) -> dict[str, Any]:
    names = options.configs or of_recipes()
    found: dict[str, Any] = {"task": f"steps {BETWEEN} between logged steps, their mean, and step {LOGGED}, logged"}
    if options.before:
        with checked_out(options.before) as code:
            found["before"] = {"commit": options.before, **_measured(code, names)}
    return {**found, **_measured(ROOT, names), "versions": versions("lightning")}


def rows(result: dict[str, Any]) -> list[list[str]]:
    lines = []
    for when, words in ("between", "between logged steps"), ("logged", "that is logged"):
        parts = (result["before"], result) if "before" in result else (result,)
        most = [_most([recipe[when] for recipe in part["recipes"].values()]) for part in parts]
        what = f"exchanges for logging in a training step {words}, two processes, the most of all recipes"
        lines.append([what, f"Lightning's sync_dist: {most[0]}" if len(most) > 1 else "–", most[-1]])
    return lines


def _most(recipes: list[dict[str, Any]]) -> str:
    calls = max(recipe["calls"].get("logging", 0) for recipe in recipes)
    barriers = max(sum(recipe["barriers"].values()) for recipe in recipes)
    return f"{calls:g}, and {barriers:g} barriers"


def of_recipes() -> list[str]:
    """A config ``*-digits`` of each recipe that takes steps."""
    from recipes.cli.catalogue import config_names

    found: dict[str, str] = {}
    for name in config_names():
        if name.endswith("-digits") and not name.startswith(("teacher-", "svm-")):
            found[packaged(name)["model"]["class_path"]] = name
    return sorted(found.values(), key=lambda name: (name != TEACHER, name))


def summed(counted: dict[str, Any]) -> dict[str, Any]:
    """Of the steps of a run, those that the result has."""

    def mean(steps: tuple[int, ...]) -> dict[str, Any]:
        found: dict[str, dict[str, float]] = {}
        for what in ("calls", "bytes", "barriers"):
            each = [counted["steps"][str(step)].get(what, {}) for step in steps]
            kinds = sorted({kind for one in each for kind in one})
            found[what] = {kind: round(sum(one.get(kind, 0) for one in each) / len(steps), 2) for kind in kinds}
        return found

    return {"parameters": counted["parameters"], "between": mean(BETWEEN), "logged": mean((LOGGED,))}


def _measured(code: Path, names: list[str]) -> dict[str, Any]:
    """Runs the configs with the code of a checkout, in two processes."""
    names = [TEACHER, *(name for name in names if name != TEACHER)]
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPATH": f"{code}:{ROOT / 'scripts'}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.collectives", folder]
        ranks = [subprocess.Popen([*command, str(rank), *names], env=environment, cwd=folder) for rank in (0, 1)]
        if any(code != 0 for code in [rank.wait() for rank in ranks]):
            raise SystemExit("a run failed: its message is above")
        counts = {name: json.loads((Path(folder) / f"{name}.json").read_text()) for name in names}
    return {"recipes": {name: summed(counted) for name, counted in counts.items()}}


def _run_all(folder: Path, rank: int, names: list[str]) -> None:
    """Runs configs one after the other, as one of two processes."""
    import torch

    from recipes.cli import main

    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # asked for, and not used
    os.environ["TORCHELASTIC_RUN_ID"] = "benchmark"  # by which Lightning knows that both processes are there
    quiet()
    for name in names:
        store = f"file://{folder / name}.store"
        torch.distributed.init_process_group("gloo", store, rank=rank, world_size=2)  # the command ends with its end
        config = packaged(name)
        options = {"config": name, "runs": folder / "runs", **OPTIONS}
        options["trainer.callbacks.path"] = folder / f"{name}.json"
        if "teacher" in config["model"].get("init_args", {}):
            (options["model.teacher"],) = (folder / "runs" / TEACHER).glob("*/checkpoints/last.ckpt")
        options |= OF_DATA.get(config["data"]["class_path"].rpartition(".")[2], {})
        main(["fit", *(f"--{option}={value}" for option, value in options.items())])


def packaged(name: str) -> dict[str, Any]:
    import yaml

    from recipes.cli.catalogue import config_file

    return yaml.safe_load(config_file(name).read_text())


if __name__ == "__main__":
    _run_all(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
