"""A sequence of tasks is one run: where it is killed and on how many devices it runs does not change what is known."""

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

WHOLE = {"trainer__max_steps": -1}
IN_THE_THIRD_TASK = {"epoch": 2, "batch": 6}


def counts(run):
    """The images that were right on each task after each task, and all that were shown."""
    state = run.checkpoint["state_dict"]
    return torch.stack([state[f"accuracy_matrix.{name}"] for name in ("images", "aware", "agnostic")])


@pytest.mark.parametrize("case", ["lwf-split-digits", "rehearsal-split-digits"])
def test_killed_in_the_third_task_or_on_two_devices_it_ends_with_the_same_matrix(case, runs):
    whole = counts(runs(case, **WHOLE))
    assert (whole[0] > 0).all()  # measured on 5 tasks before training and after each
    killed = runs(case, killed=IN_THE_THIRD_TASK, **WHOLE)
    assert killed.checkpoint["tasks"] == {"begun": 3, "ended": 2, "epochs": [1] * 5, "first_without_images": False}
    assert (counts(killed)[0][3:] == 0).all()
    assert torch.equal(counts(runs(case, after=killed.path, **WHOLE)), whole)
    assert torch.equal(counts(runs(case, processes=2, **WHOLE)), whole)
    assert torch.equal(counts(runs(case, processes=2, after=killed.path, **WHOLE)), whole)
