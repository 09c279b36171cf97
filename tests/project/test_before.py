"""What earlier commits wrote is still read, and gives the same numbers: see ``before.py``."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.project.before import CASES, TEACHER, outcome

BEFORE = Path(__file__).parent / "before"
FILES = sorted(BEFORE.glob("*/*.ckpt"))

# the same bits on one machine; another may sum in another order. Probes work on features in float32
TOLERANCE = {"rtol": 1e-6, "atol": 1e-9, "equal_nan": True}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def test_every_case_is_kept():
    assert {path.stem for path in FILES} >= set(CASES)


@pytest.mark.parametrize("checkpoint", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_checkpoint_of_an_earlier_commit_is_read_and_trained_on_as_then(checkpoint, tmp_path):
    expected = torch.load(checkpoint.with_suffix(".pt"), weights_only=True)
    shutil.copy(checkpoint.with_name(f"{TEACHER}.ckpt"), tmp_path / "teacher.ckpt")
    shutil.copy(checkpoint, tmp_path)
    found = outcome(tmp_path, tmp_path / checkpoint.name, checkpoint.stem)
    assert found["steps"] == expected["steps"]
    assert_alike(found["state_dict"], expected["state_dict"])
    answers = found["predictions"]
    if {"task", "score"} & answers.keys():  # of ContinualRecipe, whose predictions did not use the task
        same = ("label", "index", "feature")
        assert_alike({name: answers[name] for name in same}, {name: expected["predictions"][name] for name in same})
    else:
        assert_alike(answers, expected["predictions"])
    measured = {"metrics": found["metrics"], **json.loads(found["reports"])}  # more may be measured now
    for name, values in {"metrics": expected["metrics"], **json.loads(expected["reports"])}.items():
        values = {
            key: value for key, value in values.items() if key != "test/forward_transfer"
        }  # null where it is noise
        assert_alike({key: measured[name][key] for key in values}, values)


def assert_alike(found, expected, name=""):
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_alike(found[key], expected[key], str(key) if "linear" not in name else name)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected):
            assert_alike(one, other, name)
    elif "linear" in name and isinstance(expected, float):  # solved in float32 then, and in float64 now
        assert found == pytest.approx(expected, abs=2e-3)
    elif isinstance(expected, float | torch.Tensor):
        torch.testing.assert_close(found, expected, **TOLERANCE)
    else:
        assert found == expected
