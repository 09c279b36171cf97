"""At the end of ``recipes fit``, every network encodes each test image once, whoever reports on it."""

import json

import pytest

from recipes.cli import main
from tests.system.exactness import RECIPES, TEACHER, arguments, packaged

SHORT = {
    "trainer.accelerator": "cpu",
    "trainer.max_steps": 2,
    "trainer.limit_val_batches": 0,
    "trainer.num_sanity_val_steps": 0,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "probe.labels_per_class": "[]",
    "probe.references": "false",  # other networks, which take as long again
    "model.scheduler": "null",
    "data.batch_size": 96,
}

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


def fit(config, folder, **changed):
    main(arguments(config, folder, SHORT, changed))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """The run of a teacher for the digits."""
    folder = tmp_path_factory.mktemp("teacher")
    fit(TEACHER, folder, **{"trainer.limit_test_batches": 0})
    return folder / TEACHER


@pytest.mark.parametrize("config", RECIPES)
def test_each_network_encodes_each_test_image_once(config, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **options: None)  # which takes a second each
    needs_teacher = "teacher" in packaged(config)["model"]["init_args"]
    changed = {"model.teacher": teacher} if needs_teacher else {}
    counted = {"trainer.callbacks": "tests.system.passes.Passes", "trainer.callbacks.path": tmp_path / "passes.json"}
    fit(config, tmp_path, **changed, **counted)
    passes = json.loads((tmp_path / "passes.json").read_text())
    assert passes["encoder"] == [1, 1]
    assert all(least == most <= 1 for least, most in passes.values())
    assert ("teacher 0" in passes) == needs_teacher
    assert [*tmp_path.glob("*/*/*.json")]  # of a report
