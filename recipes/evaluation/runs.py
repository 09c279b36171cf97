"""Reads finished runs: the reports, the logged metrics and the configuration of a run directory."""

import csv
import json
from pathlib import Path
from typing import Any

REPORTS = ("evaluation", "classes", "distillation", "continual")
METRICS = "metrics.csv"


def read_reports(directory: Path) -> dict[str, Any]:
    """Reads the reports of a run: what ``evaluation.json`` and the other files of ``REPORTS`` hold, by name.

    Raises:
        ValueError: if a report is not complete JSON.
    """
    found = {}
    for name in REPORTS:
        if (file := directory / f"{name}.json").is_file():
            try:
                found[name] = json.loads(file.read_text())
            except json.JSONDecodeError:
                raise ValueError(f"{file} is not complete: evaluate the run again with 'recipes test'") from None
    return found


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Reads the rows of ``metrics.csv``, without empty cells; no rows if there is no file."""
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]


def last_values(file: Path) -> dict[str, float]:
    """Reads the last value of every column: metrics are logged at different steps, in rows of their own."""
    last: dict[str, float] = {}
    for row in read_metrics(file):
        last |= row
    return last
