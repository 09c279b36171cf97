"""How much memory and time the representation probe takes, against the size of its bank of features.

Each stage runs in a process of its own on one CPU: collecting the features of the bank batch by batch, classification
by nearest neighbours (k = 200), and logistic regression (at most 100 iterations of L-BFGS). Memory is the largest
resident size above that before the bank was made, over the size of the bank: 1 is the bank alone.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.common import versions

STAGES = {"collect": "collecting the features", "knn": "nearest neighbours", "linear": "logistic regression"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=100_000, help="number of images in the bank")
    parser.add_argument("--width", type=int, default=2048, help="number of features of an image")
    parser.add_argument("--classes", type=int, default=100, help="number of classes")
    parser.add_argument("--queries", type=int, default=1000, help="number of images to classify")
    parser.add_argument("--rounds", type=int, default=1, help="how often each stage takes its turn")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--before", type=Path, help="JSON file of this benchmark at an earlier commit, to keep beside")


def run(options: argparse.Namespace) -> dict[str, Any]:
    sizes = {name: getattr(options, name) for name in ("images", "width", "classes", "queries", "threads")}
    stages: dict[str, list[dict[str, Any]]] = {stage: [] for stage in STAGES}
    for _ in range(options.rounds):
        for stage, results in stages.items():
            command = [sys.executable, "-m", "benchmarks._probe_memory", json.dumps({"stage": stage, **sizes})]
            done = subprocess.run(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True, check=True)
            results.append(json.loads(done.stdout))
    return {
        "task": f"bank of {options.images:,} × {options.width:,} float32 of {options.classes} classes, "
        f"{options.queries:,} images to classify, {options.threads} CPU threads",
        "bank_mb": options.images * options.width * 4 / 1e6,
        "stages": stages,
        "peak_over_bank": max(result["peak_over_bank"] for results in stages.values() for result in results),
        "versions": versions("lightning"),
        **({"before": json.loads(options.before.read_text())} if options.before else {}),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    return [
        [
            f"memory of the representation probe, {result['bank_mb']:.0f} MB of features",
            "the features alone",
            f"{result['peak_over_bank']:.2f} times their size",
        ]
    ]
