"""Curves over training."""

from pathlib import Path

import pytest

from recipes.evaluation.comparison import grouped
from recipes.evaluation.curves import curve, over_epochs
from tests.helpers.written_runs import stored_run


def test_a_curve_is_the_mean_at_the_steps_that_all_seeds_have(tmp_path: Path) -> None:
    def rows(shift: float, steps: tuple[int, ...]) -> list[dict[str, float]]:
        return [{"epoch": step // 10, "step": step, "train/loss": step + shift} for step in steps]

    seeds = [
        stored_run(tmp_path, "a", 0, rows=rows(0, (4, 9, 14, 19))),
        stored_run(tmp_path, "a", 1, rows=rows(2, (4, 9, 19))),
    ]
    (group,) = grouped(seeds)
    assert over_epochs([group])
    drawn = curve(group, "train/loss", epochs=True)
    assert drawn is not None
    assert drawn.x.tolist() == [0.5, 1.0, 2.0]
    assert drawn.mean.tolist() == [5, 10, 20]
    assert drawn.std.tolist() == pytest.approx([2**0.5] * 3)
    in_steps = curve(group, "train/loss", epochs=False)
    assert in_steps is not None
    assert in_steps.x.tolist() == [5, 10, 20]
    assert curve(group, "val/knn", epochs=True) is None
