"""The page about a recipe of your own works as printed: its files, its commands and its Python, in their order."""

import json
import re
import shlex
from pathlib import Path

import pytest

from recipes.cli import OF_OUR_OWN, main
from recipes.cli.command import OF_LIGHTNING
from tests.helpers.own_modules import forgotten

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

PAGE = (Path(__file__).parents[2] / "docs" / "own-recipe.md").read_text()
FILES = dict(re.findall(r"<!-- file: (\S+) -->\n```\w+\n(.*?)```", PAGE, re.S))
STEPS = [
    (kind, step)
    for kind, block in re.findall(r"<!-- run -->\n```(\w+)\n(.*?)```", PAGE, re.S)
    for step in (block.splitlines() if kind == "bash" else [block])
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder in which everything on the page was done."""
    folder = tmp_path_factory.mktemp("own")
    with pytest.MonkeyPatch.context() as monkeypatch, forgotten(monkeypatch):
        monkeypatch.chdir(folder)
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: None)  # which takes long
        for name, text in FILES.items():
            Path(name).write_text(text)
        first = "<time>"
        for kind, step in STEPS:
            step = step.replace("<time>", first)
            if kind == "bash":
                main(shlex.split(step)[1:])
            else:
                exec(compile(step, "own-recipe.md", "exec"), {})
            first = min(path.name for path in Path("runs/simsiam").iterdir())
        yield folder


def reports(folder, pattern):
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def test_the_recipe_has_about_40_lines_of_code():
    assert len([line for line in FILES["simsiam.py"].splitlines() if line.strip()]) <= 42


def test_the_trained_encoder_classifies_95_per_cent_of_the_digits_by_knn(folder):
    first, *_ = reports(folder, "runs/simsiam/*/evaluation.json")
    assert first["accuracy"]["trained_encoder"]["knn"] >= 0.95


def test_the_page_uses_every_command_that_reads_a_checkpoint():
    used = {shlex.split(step)[1] for kind, step in STEPS if kind == "bash"}
    assert used == {*OF_LIGHTNING, *OF_OUR_OWN} - {"compare"}


def test_test_gives_the_numbers_of_the_run(folder):
    ended, tested, *_ = reports(folder, "runs/simsiam/*/evaluation.json")
    assert tested["accuracy"] == ended["accuracy"]


def test_every_command_leaves_its_result(folder):
    found = {path.name for path in folder.rglob("*")}
    assert {"predictions.npz", "probe.json", "advice.yaml", "model.pt2"} <= found


def test_the_advice_keeps_the_encoder_of_the_run(folder):
    assert "runs/simsiam" in (folder / "advice.yaml").read_text()
