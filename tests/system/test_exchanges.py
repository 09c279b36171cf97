"""What the processes of a run exchange in training steps, counted where they do it, for every recipe."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from recipes.cli import main
from tests.helpers.drawing import draw_nothing
from tests.helpers.processes import run
from tests.system.exactness import CASES, IN_TASKS, OPTIONS, TEACHER, arguments, packaged

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
collectives = importlib.import_module("benchmarks.collectives")

pytestmark = pytest.mark.slow


def run_all(folder: Path, cases: list[str]) -> None:
    """Runs cases one after the other, as one of two processes."""
    draw_nothing()
    sys.path.insert(0, str(SCRIPTS))
    rank = torch.distributed.get_rank()
    for case in cases:
        if not torch.distributed.is_initialized():  # the command ends with its end
            torch.distributed.init_process_group("gloo", f"file://{folder / case}", rank=rank, world_size=2)
        changed = {**collectives.OPTIONS, "trainer.callbacks.path": folder / f"{case}.json"}
        changed |= {"checkpoint.every_n_train_steps": 100, "trainer.accumulate_grad_batches": 1}
        changed |= {"data.batch_size": 18} if case in IN_TASKS else {}
        if "teacher" in packaged(case)["model"]["init_args"]:
            (changed["model.teacher"],) = folder.glob(f"runs/{TEACHER}/*/checkpoints/last.ckpt")
        main(arguments(case, folder / "runs", OPTIONS, changed))


@pytest.fixture(scope="module")
def counted(tmp_path_factory):
    """By recipe, the exchanges of a step between logged steps and of a logged step."""
    folder = tmp_path_factory.mktemp("exchanges")
    cases = sorted(CASES, key=lambda case: case != TEACHER)
    run(run_all, folder, cases, processes=2)
    return {case: collectives.summed(json.loads((folder / f"{case}.json").read_text())) for case in cases}


@pytest.mark.parametrize("case", CASES)
def test_a_step_between_logged_steps_has_no_barrier_and_exchanges_nothing_to_log(case, counted):
    between = counted[case]["between"]
    assert not between["barriers"]
    assert "logging" not in between["calls"]
    assert not {"others", "Lightning's signals"} & between["calls"].keys(), "every exchange has a known reason"
    assert between["bytes"]["gradients"] <= counted[case]["parameters"]


@pytest.mark.parametrize("case", CASES)
def test_a_logged_step_joins_all_values_at_once_without_a_barrier(case, counted):
    logged = counted[case]["logged"]
    assert not logged["barriers"]
    computed = {"byol-digits", "ewc-split-digits", "si-split-digits"}  # a measure that needs more than a mean
    assert 1 <= logged["calls"]["logging"] <= 1 + (case in computed)
