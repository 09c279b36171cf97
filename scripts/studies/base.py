"""What a study is: a grid of runs with a table in the docs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from recipes.launch import Grid, fit, measure

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "results"
KEPT = ROOT / "runs" / "studies"
LEAN = "--probe.references false --probe.labels_per_class []"  # measures the trained encoder, with all labels


@dataclass(frozen=True, kw_only=True)
class Study(Grid):
    """A grid whose results are a table: ``scripts/reproduce <study>`` measures it, and tables.py shows it.

    Attributes:
        columns: of the table, out of the COLUMNS of tables.py.
        root: default folder of the data, from the top of the checkout; None for data that needs no folder.
        groups: where every variant is named ``<row>: <group>``, the groups, each of which has columns of its own.
        of_groups: columns of each group; ``columns`` are then taken from the first group that a row has.
    """

    columns: tuple[str, ...] = ("knn", "linear", "training_minutes")
    root: str | None = None
    groups: tuple[str, ...] = ()
    of_groups: tuple[str, ...] = ()


def measure_study(
    name: str, study: Study, seeds: Sequence[int], only: Sequence[str] | None = None, **options: Any
) -> dict[str, Any]:
    """Runs what is missing in results/<name>.json; runs of other studies with the same command count.

    Args:
        name: of the study.
        study: the variants.
        seeds: of the runs.
        only: variants to run; if None, all variants.
        **options: of ``recipes.launch.measure``.
    """
    kept = {"kept": KEPT, "others": list(RESULTS.glob("*.json")), "run": partial(fit, cwd=ROOT)}
    return measure(study, RESULTS / f"{name}.json", seeds, only, **{**kept, **options})
