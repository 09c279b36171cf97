"""Every recipe knows how many steps its run has, whether or not its epochs are of one length."""

import math

import pytest
import torch
from lightning.pytorch import Callback, seed_everything

import recipes
from datamodules import Digits, TaskSequence
from recipes.cli.catalogue import recipe_names
from recipes.continual import ContinualRecipe
from recipes.nn import MLP
from recipes.optim import WarmupCosine
from tests.helpers.training import SaveAndDie, fit_until_killed, quiet_trainer

GROUPS = ["01", "23456789"]  # 5 and 20 batches of 50


class Rates(Callback):
    """Notes the learning rate of every optimiser step, and how many steps the recipe takes its run to have."""

    def __init__(self):
        self.rates, self.totals = [], set()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.totals.add(pl_module.total_steps)


def fit(callbacks=(), warmup_epochs=0, ckpt_path=None, **options):
    seed_everything(0, verbose=False)
    data = TaskSequence(Digits(size=8), class_groups=GROUPS, epochs_per_task=[2, 3], batch_size=50)
    recipe = recipes.Supervised(
        MLP(8, hidden=(4,)),
        10,
        optimizer=lambda p: torch.optim.SGD(p, lr=1.0),
        scheduler=lambda o: WarmupCosine(o, warmup_epochs),
        lr_batch_size=None,
    )
    noted = Rates()
    trainer = quiet_trainer(callbacks=[noted, *callbacks], limit_val_batches=0, **options)
    fit_until_killed(trainer, recipe, data, ckpt_path=ckpt_path)
    return noted


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 2 * 5 + 3 * 20),
        ({"max_epochs": 3}, 2 * 5 + 20),
        ({"max_steps": 33, "max_epochs": -1}, 33),
        ({"max_steps": 33}, 33),
        ({"accumulate_grad_batches": 3}, 2 * 2 + 3 * 7),
        ({"limit_train_batches": 0.5}, 2 * 2 + 3 * 10),
        ({"limit_train_batches": 8}, 2 * 5 + 3 * 8),
    ],
)
def test_a_schedule_over_tasks_of_unequal_length_ends_with_the_run(options, steps):
    noted = fit(**options)
    assert noted.totals == {steps}
    assert noted.rates == pytest.approx([(1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps)])


@pytest.mark.parametrize("step", [3, 10, 31])
def test_a_run_that_resumes_in_any_task_keeps_its_schedule(step, tmp_path):
    path, whole = tmp_path / "killed.ckpt", fit(warmup_epochs=1)
    before = fit([SaveAndDie(path, "batch end", step)], warmup_epochs=1)
    after = fit(warmup_epochs=1, ckpt_path=path)
    assert len(before.rates) == step
    assert before.rates + after.rates == pytest.approx(whole.rates)
    assert after.totals == whole.totals


def test_every_recipe_counts_its_steps_in_this_way():
    counted = ("total_steps", "steps_left", "steps_until", "steps_per_epoch")
    others = [getattr(recipes, name) for name in recipe_names()]
    others = [recipe for recipe in others if not issubclass(recipe, ContinualRecipe)]
    assert len(others) > 10
    for recipe in others:
        assert all(getattr(recipe, name) is getattr(recipes.Recipe, name) for name in counted), recipe.__name__
