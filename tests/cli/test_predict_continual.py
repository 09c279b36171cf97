"""From a run that learned several tasks to predictions for a folder of new pictures."""

import csv
import os

import pytest

from datamodules import ImageFolder, TaskSequence
from recipes import FineTuning
from recipes.callbacks import PredictionFile
from recipes.cli import main
from recipes.nn import ConvNet
from tests.cli.test_predict_folder import COLOURS, QUIET, squares
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
SHAPES = {**COLOURS, "yellow": (230, 220, 20)}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tests.cli.test_predict_folder.COLOURS", SHAPES)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def fit(recipe, scenario, tmp_path):
    squares(tmp_path / "pictures", {colour: colour for colour in SHAPES}, 16)
    encoder = ["--model.encoder", "ConvNet", "--model.encoder.in_channels", "3", "--model.encoder.widths", "[8]"]
    base = ["--data.base", "ImageFolder", "--data.base.root", "pictures", "--data.base.image_size", "8"]
    tasks = ["--data.num_tasks", "2", "--data.scenario", scenario, "--data.epochs_per_task", "6"]
    data = ["--data", "TaskSequence", *base, *tasks, "--data.batch_size", "8", "--trainer.max_epochs", "-1"]
    rate = ["--model.optimizer", "Adam", "--model.optimizer.lr", "0.03"]
    main(["fit", "--name", "run", "--model", recipe, *encoder, *rate, *data, *QUIET, "--probe.every_n_epochs", "0"])


def predict(tmp_path, name, *options):
    new = ["--data", "ImageFolder", "--data.root", "new", "--data.image_size", "8"]
    main(["predict", "--ckpt_path", "runs/run", "--name", name, *new, *options, *QUIET])
    (path,) = tmp_path.glob(f"runs/{name}/*/predictions.csv")
    return rows(path)


@pytest.mark.slow
def test_new_pictures_are_predicted_with_the_task_as_an_option(tmp_path, capsys, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    fit("LwF", "task", tmp_path)
    squares(tmp_path / "new", dict.fromkeys(SHAPES, "."), 2)
    for task, own in enumerate((("blue", "green"), ("red, or so", "yellow")), 1):
        given = predict(tmp_path, f"task{task}", "--task", str(task))
        assert {row["file"] for row in given} == {f"{colour} {i}.png" for colour in SHAPES for i in range(2)}
        assert {row["task"] for row in given} == {str(task)}
        assert {row["class"] for row in given} <= set(own)
    assert "the task of these images is unknown" not in caplog.text
    assert {row["task"] for row in predict(tmp_path, "unknown")} == {""}
    assert "the task of these images is unknown" in caplog.text
    for task, told in (("1", False), (None, True)):
        caplog.clear()
        main(["export", "--ckpt_path", "runs/run", "--formats", "safetensors", *(["--task", task] if task else [])])
        assert ("the task of these images is unknown" in caplog.text) == told
    capsys.readouterr()
    for options, message in (
        (["--task", "3", "--data", "ImageFolder", "--data.root", "new", "--data.image_size", "8"], "between 1 and 2"),
        (["--task", "1"], "a TaskSequence, which knows the task of each image: leave task out"),
        (["--data.base.root", "new"], r"To predict new images, give ImageFolder itself as the data"),
    ):
        with pytest.raises(SystemExit):
            main(["predict", "--ckpt_path", "runs/run", *options, *QUIET])
        error = capsys.readouterr().err
        assert message in error
        assert error.count("recipes: error") == 1


@pytest.mark.slow
def test_in_the_scenario_class_no_task_is_needed(tmp_path):
    fit("ICaRL", "class", tmp_path)
    squares(tmp_path / "new", dict.fromkeys(SHAPES, "."), 2)
    given = predict(tmp_path, "new")
    assert list(given[0]) == ["file", "class", "score"]
    assert sum(row["class"] == row["file"][:-6] for row in given) >= 6


@pytest.mark.parametrize("several", [False, True], ids=["classes", "datasets"])
def test_the_table_of_a_sequence_names_the_files(several, tmp_path):
    for root in ("a", "b"):
        squares(tmp_path / root, {colour: colour for colour in SHAPES}, 10)
    folders = [ImageFolder(root, image_size=8) for root in ("a", "b")]
    data = TaskSequence(folders[0], folders[1:] if several else (), "datasets" if several else "classes", "class",
                        num_tasks=None if several else 2)  # fmt: skip
    recipe = FineTuning(ConvNet((4,), in_channels=3), data.tasks)
    quiet_trainer(callbacks=[PredictionFile()], default_root_dir=tmp_path).predict(recipe, data)
    found = [row["file"] for row in rows(tmp_path / "predictions.csv")]
    paths = [path for folder in folders[: 1 + several] for path in folder.paths["test"]]
    assert sorted(found) == sorted(str(path if several else path.relative_to("a")) for path in paths)
    of_label = [data.class_names[label].split(" (")[0] for label in data.splits.test.label]
    assert [os.path.basename(os.path.dirname(name)) for name in found] == of_label
