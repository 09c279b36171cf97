"""The numbers of finished runs, and the JSON file of a grid."""

import importlib.metadata
import json
import os
import platform
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recipes.base.texts import mapping_from_json
from recipes.evaluation.cost import megabytes
from recipes.evaluation.runs import last_values, read_metrics, read_reports
from recipes.launch.grid import Grid, Job

Record = dict[str, Any]  # the numbers of one run
Found = dict[Job, Record]
_LOGGED = r"(val|test)/(?!.*(knn|linear))|train/projection_std"  # accuracies of probes are in evaluation.json


def record(directory: Path, seed: int, minutes: float) -> Record:
    """Collects the numbers of a finished run.

    Args:
        directory: of the run.
        seed: of the run.
        minutes: duration of its command.
    """
    last = last_values(read_metrics(directory / "metrics.csv"))
    accuracy, protocol, cost = _reported(directory)
    training, images = protocol.get("training_minutes"), protocol.get("training_images_seen", 0)
    return {
        "seed": seed,
        "accuracy": accuracy,
        "metrics": {name: last[name] for name in last if re.match(_LOGGED, name)} | cost,
        "steps": int(last["step"]),
        "command_minutes": round(minutes, 2),
        "images_per_second": round(images / training / 60, 1) if training else 0.0,
        "protocol": protocol,
    }


def _reported(directory: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, float]]:
    """The accuracies of the probes, the protocol, and the cost of a continual learner."""
    reports = read_reports(directory)
    accuracy, protocol, cost = {}, {}, {}
    if continual := reports.get("continual"):
        sizes, flops = continual["cost"]["bytes"], continual["cost"]["flops_per_image"][-1]
        cost = {"memory_megabytes": megabytes(sizes), "flops_per_image": flops}
        protocol = {**continual["protocol"], "epochs": sum(continual["protocol"]["epochs_per_task"])}
    if evaluation := reports.get("evaluation"):
        accuracy, protocol = evaluation["accuracy"], {**protocol, **evaluation["protocol"]}
    return accuracy, protocol, cost


def numbers(run: Record) -> dict[str, float]:
    """Lists all numbers of a run; for few labels, the mean over the draws of the labels."""
    accuracy = run["accuracy"].get("trained_encoder", {})
    return {
        **{name: value["mean"] if isinstance(value, dict) else value for name, value in accuracy.items()},
        **run["metrics"],
        **{name: run["protocol"][name] for name in ("epochs", "training_minutes") if name in run["protocol"]},
        "steps": run["steps"],
        "command_minutes": run["command_minutes"],
        "images_per_second": run["images_per_second"],
    }


def one_line(run: Record) -> str:
    """Formats the main numbers of a run."""
    found = numbers(run)
    names = ("knn", "linear", *run["metrics"], "command_minutes")
    return ", ".join(f"{name} {found[name]:.4g}" for name in names if name in found)


def summary(values: Sequence[float]) -> dict[str, float]:
    """Computes mean and sample standard deviation, rounded to 4 decimals; NaN if a value is NaN."""
    mean = statistics.fmean(values)
    # of squares by hand: statistics.stdev fails where a run diverged and a number is NaN
    spread = (sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)) ** 0.5
    return {"mean": round(mean, 4), "std": round(spread, 4)}


def summaries(same: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Computes mean and standard deviation over the seeds of each number that all runs have."""
    each = [numbers(run) for run in same]
    return {name: summary([found[name] for found in each]) for name in each[0] if all(name in found for found in each)}


def whole(grid: Grid, found: Found) -> dict[str, Any]:
    """Puts together the content of the JSON file of a grid.

    Args:
        grid: of the runs.
        found: the runs measured so far.
    """
    variants: dict[str, dict[str, Any]] = {}
    for variant in grid.variants:
        if same := [found[job] for job in sorted(found) if job.variant == variant]:
            variants[variant] = {"command": grid.command(variant), "measured": summaries(same), "runs": same}
    every = [run for entry in variants.values() for run in entry["runs"]]
    protocols = [run["protocol"] for run in every]
    return {
        "about": grid.about,
        "seeds": sorted({run["seed"] for run in every}),
        "protocol": {
            key: value
            for key, value in (protocols[0] if protocols else {}).items()
            if all(protocol.get(key) == value for protocol in protocols)
        },
        "total_minutes": round(sum(run["command_minutes"] for run in every), 1),
        "machine": " and ".join(sorted({run["machine"] for run in every})),
        "jobs": sorted({run["jobs"] for run in every}),
        "versions": versions(),
        "variants": variants,
    }


def measured_before(grid: Grid, seeds: Sequence[int], path: Path, others: Sequence[Path] = ()) -> Found:
    """Finds the runs that need not run again.

    Args:
        grid: of the runs.
        seeds: whose runs are taken from other files.
        path: file of this grid, all of whose runs count.
        others: files of other grids; runs with the same command count.

    Raises:
        ValueError: if a file is not complete JSON. Nothing is measured then, because its runs would be lost.
    """
    found: Found = {}
    variants = {grid.command(variant): variant for variant in grid.variants}
    for file in [*sorted(set(others) - {path}), path]:  # its own file last: its runs win
        result = mapping_from_json(file, f"the file of results {file}") if file.is_file() else {}
        if result.get("versions") != versions():
            continue
        for entry in result.get("variants", {}).values():
            if (variant := variants.get(entry["command"])) is not None:
                for run in entry["runs"]:
                    needed = grid.needed(variant)
                    same = run["configuration"] == grid.configuration(variant)
                    same &= run.get("needed", needed) == needed  # files of before have no such entry
                    if same and (file == path or run["seed"] in seeds):
                        found[Job(variant, run["seed"])] = run
    return found


def versions() -> dict[str, str]:
    """Returns the versions of the packages that numbers depend on."""
    return {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "lightning")}


def machine() -> str:
    """Describes this machine."""
    import torch

    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {os.cpu_count()} CPU cores{accelerator}"


def write(path: Path, result: dict[str, Any]) -> None:
    """Writes a JSON file. If the process is killed, the file has its old or its new content, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps(result, indent=1) + "\n")
    new.replace(path)
