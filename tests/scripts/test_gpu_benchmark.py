"""What is measured on a GPU runs on a CPU too, in small, so that a mistake costs no minutes of one."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))  # where scripts/benchmark finds them

gpu = importlib.import_module("benchmarks.gpu")


def run(*parts):
    return gpu.run(argparse.Namespace(parts=parts, rounds=1, steps=1, jobs=1, tiny=True))


def test_operations_and_files_are_measured():
    parts = ("losses", "probe", "batch_norm", "files")
    result = run(*parts)
    assert not any("error" in result[part] for part in parts)
    assert result["probe"]["linear_accuracy"] > 0.3  # five classes
    assert gpu.rows(result)[0][0] == "NT-Xent of 64 images, cpu"


@pytest.mark.slow
def test_a_step_is_measured():
    (step,) = run("steps")["steps"].values()
    assert step["ratio"] > 0
    assert 0 < step["share_of_views"] < 1


@pytest.mark.slow
def test_recipes_run_and_their_steps_are_looked_at():
    result = run("recipes")["recipes"]
    assert not result["failed"]
    assert all(entry["steps"] == 9 for entry in result["runs"].values())


def test_without_a_gpu_nothing_is_measured_but_in_small(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.run(argparse.Namespace(parts=(), tiny=False))
