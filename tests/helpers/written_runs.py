"""Run directories written by hand, for tests of what reads them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from recipes.evaluation.runs import Run, read_run


def write_run(
    folder: Path,
    name: str,
    seed: int = 0,
    time: str = "2026-01-01_00-00-00",
    settings: Mapping[str, Any] | None = None,
    rows: Sequence[Mapping[str, float]] = (),
    **reports: Any,
) -> Path:
    """Makes the directory of a run.

    Args:
        folder: of all runs.
        name: of the run.
        seed: of the run.
        time: name of its directory.
        settings: parts of its config.yaml.
        rows: of its metrics.csv.
        **reports: content of its JSON reports, by name.
    """
    directory = folder / name / time
    directory.mkdir(parents=True)
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(directory)}}
    config = {"seed_everything": seed, "name": name, "runs": str(folder), **(settings or {})}
    config["trainer"] = {"logger": logger, **config.get("trainer", {})}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [",".join(columns), *(",".join(str(row.get(column, "")) for column in columns) for row in rows)]
    (directory / "metrics.csv").write_text("\n".join(lines) + "\n")
    for report, content in reports.items():
        (directory / f"{report}.json").write_text(json.dumps(content))
    return directory


def stored_run(folder: Path, name: str, seed: int = 0, knn: float = 0.5, **options: Any) -> Run:
    """Makes the directory of a run that measured kNN, at a time after those of its name, and reads it."""
    time = f"2026-01-01_00-00-{len(list(folder.glob(f'{name}/*'))):02}"
    return read_run(write_run(folder, name, seed, time, **{"evaluation": evaluation(knn, seed), **options}))


def evaluation(knn: float, seed: int = 0, recipe: str = "SimCLR", /, **protocol: Any) -> dict[str, Any]:
    """The content of an ``evaluation.json``."""
    about = {
        "split": "test", "run_seed": seed, "epochs": 4, "training_minutes": 2.0, "training_images_seen": 12_000,
        "test_images": 360, "num_classes": 10, "knn": {"k": 20, "temperature": 0.07},
    }  # fmt: skip
    accuracy = {"trained_encoder": {"knn": knn, "knn_1_per_class": {"mean": knn / 2, "std": 0.1}}}
    return {"recipe": recipe, "data": "Digits", "accuracy": accuracy, "protocol": about | protocol}


def matrix(seed: int, tasks: int = 3) -> list[list[float]]:
    """An accuracy matrix [T+1, T] of random numbers."""
    return torch.rand(tasks + 1, tasks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
