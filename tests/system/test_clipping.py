"""Clipping under mixed precision acts on the gradients themselves, not on those that the loss scale has multiplied."""

import pytest
import torch

from tests.system.exactness import CASES

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

SCALE = 2.0**13  # with torch's 2**16 the first gradients of a vision transformer overflow
FLOAT16 = {
    "trainer__precision": "null",
    "trainer__plugins": "lightning.pytorch.plugins.MixedPrecision",  # Trainer(precision="16-mixed") refuses CPUs
    "trainer__plugins__precision": "16-mixed",
    "trainer__plugins__device": "cpu",
    "trainer__plugins__scaler": "torch.amp.GradScaler",
    "trainer__plugins__scaler__device": "cpu",
    "trainer__plugins__scaler__init_scale": SCALE,
    "trainer__max_steps": 1,
    "trainer__accumulate_grad_batches": 1,
    "model__scheduler__warmup_epochs": 0,
    "model__optimizer": "torch.optim.SGD",
    "model__optimizer__lr": 1e-3,
    "model__optimizer__weight_decay": 0,
    "model__optimizer__momentum": 0.9,  # after one step, what SGD holds is the gradient it was given
}


def given_and_logged(run):
    """The norm of the gradients that the optimiser was given, and of those before clipping."""
    assert run.checkpoint["MixedPrecision"]["scale"] == SCALE  # else a step was left out
    state = run.checkpoint["optimizer_states"][0]["state"].values()
    gradients = [each["momentum_buffer"] for each in state]
    return torch.nn.utils.get_total_norm(gradients).item(), run.column("train/grad_norm")[0]


@pytest.mark.parametrize("case", CASES)
def test_large_gradients_are_clipped_to_the_norm_asked_for(case, runs):
    given, logged = given_and_logged(runs(case, trainer__gradient_clip_val=0.1, **FLOAT16))
    assert logged > 0.2
    assert given == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("case", CASES[::4])  # a recipe may clip at another time, but not more
def test_small_gradients_are_left_alone_although_their_scaled_ones_are_large(case, runs):
    given, logged = given_and_logged(runs(case, trainer__gradient_clip_val=1000, **FLOAT16))
    assert logged < 500
    assert given == pytest.approx(logged, rel=1e-3)
