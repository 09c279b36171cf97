"""The number of devices changes nothing: whole runs of every recipe, in float64."""

import math
import shutil

import pytest
import torch

from recipes.cli.catalogue import recipe_names
from tests.system.exactness import CASES, NOT_COVERED, Run, _relative, difference, packaged

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def test_every_recipe_is_covered_or_says_why_not():
    covered = {packaged(case)["model"]["class_path"] for case in CASES}
    assert covered.isdisjoint(f"recipes.{name}" for name in NOT_COVERED)
    assert {f"recipes.{name}" for name in recipe_names()} == covered | {f"recipes.{name}" for name in NOT_COVERED}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_half_the_batch_each_end_as_one(case, runs, measured):
    measured[case]["two_processes"] = difference(runs(case, processes=2), runs(case))
    assert measured[case]["two_processes"] < 1e-10


def test_a_difference_of_one_weight_or_of_one_row_is_noticed(runs, tmp_path):
    whole = runs(CASES[0])
    for name in ("weight", "row"):
        shutil.copytree(whole.directory, tmp_path / name)
    state = torch.load(whole.path, weights_only=True)
    weight = state["state_dict"]["encoder.network.0.weight"]
    weight[0, 0, 0, 0] += 1e-6 * weight.abs().max()
    torch.save(state, tmp_path / "weight" / "checkpoints" / "last.ckpt")
    assert difference(Run(tmp_path / "weight"), whole) == pytest.approx(1e-6, rel=1e-2)
    metrics = tmp_path / "row" / "metrics.csv"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert difference(Run(tmp_path / "row"), whole) == math.inf


def test_a_running_mean_that_is_0_but_for_rounding_is_compared_by_its_size():
    zero, other = torch.tensor([4e-17, 0.0]).double(), torch.tensor([0.0, -3e-17]).double()
    assert 0 < _relative(zero, other, "predictor.1.running_mean") < 1e-10
    assert _relative(zero, other, "exp_avg_sq") == pytest.approx(4 / 3)
    assert _relative(zero + 1e-12, other, "predictor.1.running_mean") == pytest.approx(1e-12 / 3e-17, rel=1e-3)
