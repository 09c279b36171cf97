"""Runs that should not be compared are named."""

from pathlib import Path

from recipes.evaluation.comparison import grouped
from recipes.evaluation.conditions import incomparable
from tests.helpers.written_runs import evaluation, stored_run


def test_what_cannot_be_compared_is_said_in_a_line_each(tmp_path: Path) -> None:
    digits = {"data": {"class_path": "datamodules.Digits", "init_args": {"size": 8}}}
    folder = {"data": {"class_path": "datamodules.ImageFolder", "init_args": {"root": "pets", "test_fraction": 0.2}}}
    groups = grouped(
        [
            stored_run(tmp_path, "a", settings=digits),
            stored_run(tmp_path, "b", settings=digits),
            stored_run(tmp_path, "c", settings=folder, evaluation=evaluation(0.5, test_images=4000, knn={"k": 200})),
        ]
    )
    assert incomparable(groups) == [
        "Different data: Digits 8 (a, b); ImageFolder pets (c).",
        "Different numbers of test images: 360 (a, b); 4,000 (c).",
        "Different neighbours for kNN: k 20, temperature 0.07 (a, b); k 200 (c).",
    ]
    assert incomparable(groups[:2]) == []
