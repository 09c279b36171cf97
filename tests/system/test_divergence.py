"""A run that diverges says so and ends with code 1, whatever the recipe."""

import contextlib
import io
from pathlib import Path

import pytest
import torch

from recipes.cli import main
from recipes.nn.finite import not_finite
from tests.helpers.drawing import draw_nothing
from tests.helpers.processes import run
from tests.system.exactness import CASES, TEACHER, arguments, packaged

BEFORE = sorted((Path(__file__).parents[1] / "project" / "before").glob("*/*.ckpt"))

COMMON = {
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
}
DIVERGING = {
    "model.optimizer": "torch.optim.SGD",
    "model.optimizer.lr": 1e38,
    "model.scheduler": "torch.optim.lr_scheduler.ConstantLR",
    "model.scheduler.factor": 1.0,
}


def diverging(case, runs, folder):
    """The arguments of a run with a learning rate that no network bears."""
    teacher = {"model.teacher": runs(TEACHER).path} if "teacher" in packaged(case)["model"]["init_args"] else {}
    return arguments(case, folder, COMMON, DIVERGING | teacher)


def ended(args):
    """How the command ends, and what it says last."""
    draw_nothing()
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(SystemExit) as end:
        main(args)
    return end.value.code, said.getvalue().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_a_run_that_diverges_ends_with_code_1_says_where_and_saves_nothing_bad(case, runs, tmp_path):
    ((code, said),) = run(ended, diverging(case, runs, tmp_path))
    assert code == 1
    for words in ("at step", "(learning rate ", "last finite loss"):
        assert words in said
    for saved in tmp_path.rglob("*.ckpt"):
        assert not not_finite(torch.load(saved, weights_only=True)["state_dict"])
    assert not list(tmp_path.rglob("evaluation.json"))


@pytest.mark.parametrize("path", BEFORE, ids=lambda path: path.stem)
def test_the_weights_of_a_run_that_went_well_count_as_finite(path):
    assert not not_finite(torch.load(path, weights_only=True)["state_dict"])


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
def test_weights_that_are_not_finite_are_refused_in_words(command, tmp_path, capsys):
    path = next(path for path in BEFORE if path.stem == "supervised-digits")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["head.weight"][0, 0] = torch.nan
    torch.save(checkpoint, tmp_path / "last.ckpt")
    options = {"ckpt_path": tmp_path / "last.ckpt", "runs": tmp_path, "trainer.limit_test_batches": 1.0}
    with pytest.raises(SystemExit) as end:
        main([command, *(f"--{name}={value}" for name, value in options.items())])
    assert end.value.code == 2
    assert "not finite (head.weight): the run that made them diverged" in capsys.readouterr().err
