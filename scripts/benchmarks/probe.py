"""How much memory and time the representation probe takes, against the size of its bank of features.

Each stage runs on the CPU, in one process and in two that share the bank: collecting the features of the bank batch by
batch, classification by nearest neighbours (k = 200), and logistic regression (at most 100 iterations of L-BFGS).
Memory is the largest resident size of a process above that before the bank was made, over the size of its share of the
bank: 1 is the share alone. With ``--before``, an earlier commit takes turns with this one.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import versions

STAGES = {"collect": "collecting the features", "knn": "nearest neighbours", "linear": "logistic regression"}
PROCESSES = 1, 2
_HERE = Path(__file__).parents[2]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=100_000, help="number of images in the bank")
    parser.add_argument("--width", type=int, default=2048, help="number of features of an image")
    parser.add_argument("--classes", type=int, default=100, help="number of classes")
    parser.add_argument("--queries", type=int, default=1000, help="number of images to classify")
    parser.add_argument("--rounds", type=int, default=1, help="how often each stage takes its turn")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU, over all processes")
    parser.add_argument("--stages", nargs="+", default=list(STAGES), choices=STAGES, help="what is measured")
    parser.add_argument("--before", type=Path, help="folder with a checkout of an earlier commit")


def run(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {name: getattr(options, name) for name in ("images", "width", "classes", "queries", "threads")}
    trees = {**({"before": options.before.resolve()} if options.before else {}), "now": _HERE}
    found: dict[str, Any] = {name: {} for name in trees}
    for _ in range(options.rounds):
        for stage in options.stages:
            for processes in PROCESSES:
                for name, tree in trees.items():
                    result = _measured(tree, processes, {"stage": stage, **sizes})
                    print(f"{stage}, {processes} processes, {name}: {result}", file=sys.stderr, flush=True)
                    found[name].setdefault(stage, {}).setdefault(str(processes), []).append(result)
    commits = {name: _git(tree, "rev-parse", "--short", "HEAD") for name, tree in trees.items() if name != "now"}
    return {
        "task": f"bank of {options.images:,} × {options.width:,} float32 of {options.classes} classes, "
        f"{options.queries:,} images to classify, {options.threads} CPU threads in all",
        "bank_mb": options.images * options.width * 4 / 1e6,
        "by_stage_and_processes": found,
        "peak_over_share": _largest(found["now"]),
        "commits": commits,
        "versions": versions("lightning"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"memory of the representation probe, {result['bank_mb']:.0f} MB of features on one and two processes",
            "the share of the features alone",
            f"at most {result['peak_over_share']:.2f} times its size",
        ]
    ]


def _measured(tree: Path, processes: int, task: dict[str, Any]) -> dict[str, Any]:
    """Runs one stage with the sources of a tree; the numbers of the process that takes most."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks._probe_memory", json.dumps(task), f"{folder}/store"]
        children = [
            subprocess.Popen(
                command,
                cwd=_HERE / "scripts",
                env={**os.environ, "PYTHONPATH": str(tree), "RANK": str(rank), "WORLD_SIZE": str(processes)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(processes)
        ]
        printed = [child.communicate()[0] for child in children]
    if any(child.returncode for child in children):
        raise RuntimeError(f"{task['stage']} failed with the sources in {tree}")
    results = [json.loads(each.splitlines()[-1]) for each in printed]
    return {**results[0], **{name: max(each[name] for each in results) for name in ("peak_mb", "peak_over_share")}}


def _largest(stages: dict[str, Any]) -> float:
    every = [result for stage in stages.values() for results in stage.values() for result in results]
    return max(result["peak_over_share"] for result in every)


def _git(tree: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(tree), *words], capture_output=True, text=True, check=True).stdout.strip()
