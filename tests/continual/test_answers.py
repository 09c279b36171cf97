"""What a trained continual recipe answers: the same in every measure and file, with the task and without it."""

import csv
import inspect
import json

import numpy as np
import pytest
import torch

import recipes
from datamodules import ImageDataModule, ImagesInMemory, Splits, TaskSequence
from recipes.callbacks import ClassReport, PredictionFile
from recipes.callbacks.reporting import class_report
from recipes.continual import ContinualRecipe, FineTuning, ICaRL
from tests.base.test_plain_loaders import ALONE, OWN, build
from tests.continual.sequences import Stripes, made, trainer

RECIPES = [
    recipe
    for recipe in (getattr(recipes, name) for name in recipes.__all__)
    if inspect.isclass(recipe) and issubclass(recipe, ContinualRecipe) and recipe is not ContinualRecipe
]
CASES = [*((recipe, "task") for recipe in RECIPES), (FineTuning, "domain"), (FineTuning, "class"), (ICaRL, "class")]


class Unlabelled(ImageDataModule):
    """The images of ``Stripes`` as new ones: no labels, no tasks."""

    def load(self):
        stripes = Stripes(torch.arange(40) % 4)
        return Splits((), ImagesInMemory(stripes.load().train.images(torch.arange(40)), torch.full((40,), -1)))


def stripes(scenario):
    return TaskSequence(Stripes(torch.arange(40) % 4), scenario=scenario, num_tasks=2, epochs_per_task=2, batch_size=10)


def trained(recipe, scenario):
    data = stripes(scenario)
    learner = made(recipe, data, 0.03)
    trainer(precision="32-true").fit(learner, data)
    return learner


def predicted(recipe, data, path):
    """The rows of the table, and the arrays."""
    trainer(precision="32-true", callbacks=[PredictionFile()], default_root_dir=path).predict(recipe, data)
    with (path / "predictions.csv").open(newline="") as file, np.load(path / "predictions.npz") as arrays:
        return list(csv.DictReader(file)), dict(arrays)


@pytest.mark.parametrize(("recipe", "scenario"), CASES)
def test_every_measure_and_file_has_the_same_answers(recipe, scenario, tmp_path, monkeypatch):
    monkeypatch.setattr(class_report, "save", lambda *_: None)  # pictures take most of the time
    learner, data = trained(recipe, scenario), stripes(scenario)
    tester = trainer(precision="32-true", callbacks=[ClassReport(mistakes=0)], default_root_dir=tmp_path)
    accuracy = tester.test(learner, data, verbose=False)[0]["test/accuracy"]
    assert json.loads((tmp_path / "classes.json").read_text())["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    rows, arrays = predicted(learner, data, tmp_path)
    label = arrays["label"]
    right = np.array([row["class"] for row in rows]) == np.array(learner.class_names)[label]
    assert right.mean() == pytest.approx(accuracy, abs=1e-6)
    score = "probability" if recipe.has_probabilities else "score"
    assert list(rows[0]) == ["index", "class", score] + ["task"] * (scenario == "task")
    assert (arrays[score].argmax(1) == label).mean() == pytest.approx(accuracy, abs=1e-6)
    if scenario == "task":
        task = np.arange(40) // 20 + 1
        assert [int(row["task"]) for row in rows] == arrays["task"].tolist() == task.tolist()
        assert (label // 2 + 1 == task).all()


@pytest.mark.parametrize("recipe", RECIPES)
def test_new_images_are_of_the_task_that_is_given_or_of_any(recipe, tmp_path, caplog):
    learner, data = trained(recipe, "task"), Unlabelled()
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    rows, arrays = predicted(learner, data, tmp_path)
    assert caplog.text.count("the task of these images is unknown") == 1
    assert {row["task"] for row in rows} == {""}
    assert set(arrays["task"]) == {0}
    score = arrays["probability" if recipe.has_probabilities else "score"]
    caplog.clear()
    for task, (own, other) in enumerate([([0, 1], [2, 3]), ([2, 3], [0, 1])], 1):
        rows, arrays = predicted(learner.of_task(task), data, tmp_path)
        given = arrays["probability" if recipe.has_probabilities else "score"]
        names = np.array(learner.class_names)[own]
        assert [row["class"] for row in rows] == names[score[:, own].argmax(1)].tolist()
        assert (given[:, other] == (0 if recipe.has_probabilities else -np.inf)).all()
        assert {row["task"] for row in rows} == {str(task)}
        classified = learner.classify(data.splits.train.images(torch.arange(40)))
        assert classified.argmax(1).tolist() == given.argmax(1).tolist()
    assert "unknown" not in caplog.text


def test_no_task_has_to_be_given_where_the_prediction_does_not_depend_on_it(tmp_path, caplog):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    rows, _ = predicted(trained(FineTuning, "class"), Unlabelled(), tmp_path)
    assert list(rows[0]) == ["index", "class", "probability"]
    assert "unknown" not in caplog.text


def test_a_task_that_cannot_be_is_refused():
    data = stripes("task")
    recipe = made(FineTuning, data)
    recipe.begun = 1
    for task in (0, 2, 1.0, "1", True):
        with pytest.raises(ValueError, match=f"task is {task}: it must be a whole number between 1 and 1"):
            recipe.of_task(task)
    with pytest.raises(ValueError, match="a TaskSequence, which knows the task of each image"):
        trainer().predict(recipe.of_task(1), data)
    with pytest.raises(ValueError, match="trained in the scenario class. Leave task out"):
        made(ICaRL, stripes("class")).of_task(1)


@pytest.mark.parametrize("kind", ALONE, ids=lambda kind: kind.__name__)
def test_a_task_is_refused_by_every_recipe_that_learns_no_sequence(kind):
    recipe = build(kind, **OWN.get(kind, {}))
    with pytest.raises(ValueError, match=f"task is 1, but {kind.__name__} has not learned a sequence of tasks"):
        recipe.of_task(1)
    assert recipe.of_task(None) is recipe
