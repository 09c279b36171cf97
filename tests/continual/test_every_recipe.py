"""What holds for every recipe that learns a sequence of tasks, whichever there are."""

import math

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

import recipes
from datamodules import TaskSequence
from recipes.cli.catalogue import recipe_names
from recipes.continual import ContinualRecipe, FineTuning, Joint
from recipes.evaluation.cost import megabytes, memory
from recipes.nn import MLP
from tests.continual.sequences import Stripes
from tests.helpers.training import quiet_trainer

LABEL = torch.arange(4).repeat_interleave(6)
TASK = 12  # images
RECIPES = [getattr(recipes, name) for name in recipe_names()]
RECIPES = [recipe for recipe in RECIPES if issubclass(recipe, ContinualRecipe)]
every_recipe = pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.__name__)


def sequence():
    return TaskSequence(Stripes(LABEL), num_tasks=2, scenario="class", epochs_per_task=2, batch_size=6)


def made(kind):
    seed_everything(0, verbose=False)
    return kind(MLP(4, hidden=(8,), batch_norm=False), sequence().tasks)


def trainer(*callbacks, **options):
    return quiet_trainer(callbacks=list(callbacks), **{"max_epochs": -1, **options})


def fitted(kind, data):
    recipe = made(kind)
    trainer().fit(recipe, data)
    return recipe


def state(recipe):
    return {name: value for name, value in recipe.state_dict().items() if isinstance(value, torch.Tensor)}


@every_recipe
def test_another_recipe_on_its_data_learns_what_it_learns_on_fresh_data(kind):
    data = sequence()
    trainer().fit(made(kind), data)
    used, fresh = fitted(FineTuning, data), fitted(FineTuning, sequence())
    assert all(torch.equal(value, state(fresh)[name]) for name, value in state(used).items())
    assert torch.equal(used.accuracy_matrix.agnostic, fresh.accuracy_matrix.agnostic)


class Stop(Callback):
    """Ends a run within its first task, as a crash would."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 3:
            raise RuntimeError("stopped")


@every_recipe
def test_it_learns_a_sequence_once_or_says_why_not(kind, tmp_path):
    data = sequence()
    recipe, first = made(kind), trainer()
    first.fit(recipe, data)
    first.save_checkpoint(tmp_path / "last.ckpt")
    begun = f"this {kind.__name__} has begun 2 of its 2 tasks .*: create a new recipe"
    with pytest.raises(ValueError, match=begun):
        trainer().fit(recipe, data)
    for other in (recipe, made(kind)):
        with pytest.raises(ValueError, match="the Trainer has reached its limit in an earlier run, .* a new Trainer"):
            first.fit(other, data)
    trainer().fit(recipe, data, ckpt_path=tmp_path / "last.ckpt")  # nothing is left to learn, and it resumes
    assert (recipe.begun, recipe.ended) == (2, 2)


def test_a_run_that_was_stopped_can_only_resume(tmp_path):
    data, recipe = sequence(), made(FineTuning)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(Stop()).fit(recipe, data)
    with pytest.raises(ValueError, match="has begun 1 of its 2 tasks in an earlier run"):
        trainer().fit(recipe, data)
    first = trainer(max_epochs=3)
    first.fit(made(FineTuning), data)
    first.save_checkpoint(tmp_path / "third.ckpt")
    trainer().fit(recipe, data, ckpt_path=tmp_path / "third.ckpt")
    assert torch.equal(recipe.accuracy_matrix.images[2], torch.full((2,), TASK))
    whole = fitted(FineTuning, sequence())
    assert all(torch.equal(value, state(whole)[name]) for name, value in state(recipe).items())


@every_recipe
def test_its_memory_has_room_for_the_old_images_that_it_trains_on(kind):
    data, recipe = sequence(), made(kind)
    data.setup()
    known = {image.numpy().tobytes(): task for image, task in zip(*rows(data.splits.train), strict=True)}
    old = set()

    def look(module, given):
        if recipe.training and recipe.task == 1:
            old.update(key for image in given[0] if known[key := image.to(torch.uint8).cpu().numpy().tobytes()] == 0)

    recipe.normalize.register_forward_pre_hook(look)
    trainer().fit(recipe, data)
    of_a_net = megabytes(memory(fitted(FineTuning, sequence()))["bytes"])
    stored = memory(recipe)["bytes"]
    assert megabytes(stored) >= of_a_net + len(old) * 16 / 1e6
    assert stored["data"] == stored["on_top"].get("data", 0) == (TASK * 16 if kind is Joint else 0)
    assert bool(old) == (kind is Joint or hasattr(recipe, "buffer"))


def rows(images):
    return images.images(torch.arange(len(images))), images.task.tolist()


@pytest.mark.parametrize("scenario", ["task", "class", "domain"])
def test_forward_transfer_is_logged_only_where_it_depends_on_what_was_learned(scenario):
    data = TaskSequence(Stripes(LABEL), num_tasks=2, scenario=scenario, epochs_per_task=1, batch_size=6)
    recipe, run = FineTuning(MLP(4, hidden=(8,), batch_norm=False), data.tasks), trainer()
    run.fit(recipe, data)
    (logged,) = run.test(recipe, data, verbose=False)
    assert ("test/forward_transfer" in logged) == (scenario != "class")
    unknown = recipe.accuracy_matrix.compute()["agnostic"]
    if scenario != "domain":
        assert unknown[1, 1] == 0  # no class of a later task is predicted
    assert not math.isnan(logged["test/average_accuracy"])
