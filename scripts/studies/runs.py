"""One run of ``recipes fit``, what it measured, and the mean of several."""

import csv
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
_KEPT = r"(val|test)/(?!.*(knn|linear))|train/projection_std"  # accuracies of probes are in evaluation.json


def fit(
    arguments: list[str], seed: int, threads: int | None = None, quiet: bool = False, keep: Path | None = None
) -> dict[str, Any]:
    """What a run in a folder of its own measured; the run is gone after that, unless it is to be kept.

    Args:
        arguments: of ``recipes fit``.
        seed: of the run.
        threads: of the CPU; None leaves their number to torch.
        quiet: shows nothing of the run unless it fails.
        keep: folder of the run, which is emptied first; None makes one that does not last.
    """
    if keep:
        shutil.rmtree(keep, ignore_errors=True)
        keep.mkdir(parents=True)
    with nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory() as runs:
        command = [sys.executable, "-m", "recipes", "fit", *arguments, "--seed_everything", str(seed), "--runs", runs]
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        start = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=quiet, text=True)
        minutes = (time.perf_counter() - start) / 60
        if done.returncode:
            said = "\n".join(((done.stdout or "") + (done.stderr or "")).splitlines()[-20:])
            sys.exit(f"{said}\nended with code {done.returncode}: {' '.join(command[2:])}")
        (path,) = Path(runs).glob("*/*/metrics.csv")
        last = _last_values(path)
        accuracy, protocol, cost = _reported(path.parent)
    training = protocol["training_minutes"]
    return {
        "seed": seed,
        "accuracy": accuracy,
        "metrics": {name: last[name] for name in last if re.match(_KEPT, name)} | cost,
        "steps": int(last["step"]),
        "command_minutes": round(minutes, 2),
        "images_per_second": round(protocol["training_images_seen"] / training / 60, 1) if training else 0.0,
        "protocol": protocol,
    }


def _reported(directory: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """What the reports of a run say: the accuracies of probes, the protocol, and what a continual learner costs."""
    accuracy, protocol, cost = {}, {}, {}
    if (path := directory / "continual.json").is_file():
        report = json.loads(path.read_text())
        sizes, flops = report["cost"]["bytes"], report["cost"]["flops_per_image"][-1]
        cost = {"memory_megabytes": (sizes["parameters"] + sizes["buffers"]) / 1e6, "flops_per_image": flops}
        protocol = {**report["protocol"], "epochs": sum(report["protocol"]["epochs_per_task"])}
    if (path := directory / "evaluation.json").is_file():
        report = json.loads(path.read_text())
        accuracy, protocol = report["accuracy"], {**protocol, **report["protocol"]}
    return accuracy, protocol, cost


def summary(values: list[float]) -> dict[str, float]:
    """Mean and sample standard deviation."""
    mean = statistics.fmean(values)
    # of squares by hand: statistics.stdev fails where a run diverged and a number is NaN
    spread = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5
    return {"mean": round(mean, 4), "std": round(spread, 4)}


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "lightning")}


def machine() -> str:
    import torch

    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} CPU cores{accelerator}"


def write(path: Path, result: dict[str, Any]) -> None:
    """All of it or, if the process is killed, what was there before."""
    path.parent.mkdir(exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1) + "\n")
    new.replace(path)


def _last_values(metrics: Path) -> dict[str, float]:
    """The last value of every column: metrics are logged at different steps, in rows of their own."""
    last: dict[str, float] = {}
    with metrics.open(newline="") as file:
        for row in csv.DictReader(file):
            last |= {name: float(value) for name, value in row.items() if value}
    return last
