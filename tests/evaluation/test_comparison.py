"""Seeds are averaged, and groups are told apart."""

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.evaluation.comparison import (
    Column,
    differences,
    grouped,
    report,
    shared,
)
from tests.helpers.written_runs import stored_run


def model(name: str, **arguments: Any) -> dict[str, Any]:
    return {"model": {"class_path": f"recipes.{name}", "init_args": arguments}}


def test_seeds_are_averaged_with_their_sample_standard_deviation(tmp_path: Path) -> None:
    values = [0.5, 0.75, 0.875]
    seeds = [stored_run(tmp_path, "simclr", seed, knn) for seed, knn in enumerate(values)]
    groups = grouped([*seeds, stored_run(tmp_path, "byol", 0, 0.25)])
    assert [(group.name, len(group.runs)) for group in groups] == [("simclr", 3), ("byol", 1)]
    simclr, byol = report(groups, [])["runs"]
    assert simclr["seeds"] == [0, 1, 2]
    expected = {"mean": statistics.mean(values), "std": statistics.stdev(values)}
    assert simclr["measures"]["test/knn"] == pytest.approx(expected)
    assert byol["measures"]["test/knn"] == {"mean": 0.25, "std": 0.0}


@pytest.mark.parametrize("second", [{"seed": 0}, {"seed": 1, "settings": model("SimCLR", temperature=0.2)}])
def test_runs_with_one_seed_or_other_settings_are_not_averaged(second: dict[str, Any], tmp_path: Path) -> None:
    first = stored_run(tmp_path, "simclr", settings=model("SimCLR", temperature=0.5))
    groups = grouped(
        [first, stored_run(tmp_path, "simclr", **{"settings": model("SimCLR", temperature=0.5), **second})]
    )
    assert [len(group.runs) for group in groups] == [1, 1]
    times = ["simclr/2026-01-01_00-00-00", "simclr/2026-01-01_00-00-01"]
    names = times if second["seed"] == 0 else ["simclr temperature 0.5", "simclr temperature 0.2"]
    assert [group.name for group in groups] == names


def test_measures_of_two_groups_are_shown_and_of_one_group_all(tmp_path: Path) -> None:
    logged = {"test/agreement": 0.5, "epoch": 3, "step": 4}
    groups = grouped([stored_run(tmp_path, "a", rows=[logged]), stored_run(tmp_path, "b"), stored_run(tmp_path, "c")])
    costs = ["minutes", "epochs", "steps", "images_per_second"]
    assert [column.name for column in shared(groups)] == ["test/knn_1_per_class", "test/knn", *costs]
    assert "test/agreement" in [column.name for column in shared(groups[:1])]


def test_differences_name_only_settings_that_not_all_share(tmp_path: Path) -> None:
    common = {"lr": 0.1, "layers": [{"class_path": "losses.Hint", "init_args": {"weight": 2.0}}]}
    groups = grouped(
        [
            stored_run(tmp_path, "a", settings=model("SimCLR", temperature=0.5, **common)),
            stored_run(tmp_path, "b", settings=model("SimCLR", temperature=0.2, **common)),
            stored_run(tmp_path, "c", settings=model("BYOL", momentum=0.9, **{**common, "layers": None})),
        ]
    )
    assert differences(groups) == [
        "model SimCLR, model.layers [Hint(weight 2)], model.temperature 0.5",
        "model SimCLR, model.layers [Hint(weight 2)], model.temperature 0.2",
        "model BYOL, model.layers null",
    ]
    assert differences(groups[:1]) == [""]


@pytest.mark.parametrize(
    ("name", "unit", "values", "cell"),
    [
        ("test/knn", "%", [0.5, 0.75], ("62.5", "17.7")),
        ("test/knn", "%", [0.5], ("50.0", "")),
        ("train/loss", "", [1234.5678], ("1.23e+03", "")),
        ("steps", "", [39000.0, 39000.0], ("39,000", "")),
        ("flops", "", [2e6, 4e6], ("3", "1.41")),
        ("test/knn", "%", [], ("–", "")),
        ("test/knn", "%", [float("nan")], ("–", "")),
    ],
)
def test_cells_have_mean_and_standard_deviation(name: str, unit: str, values: Any, cell: Any) -> None:
    assert Column(name, name, unit).cell(torch.tensor(values, dtype=torch.float64)) == cell
