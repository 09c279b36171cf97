"""From Python alone, a recipe trains as in a fresh process, bit for bit, whatever it was used for before.

The expectation is a new recipe with the weights and the memory of the first, on new data, with a new Trainer.
"""

import copy
import inspect
import pickle
import re
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch.utils.data import DataLoader

import recipes
from datamodules import ImageDataModule, ImagesInMemory, Splits, TaskSequence
from recipes import Recipe, Supervised
from recipes.cli.catalogue import recipe_names
from recipes.distillation import Teacher
from recipes.nn import ConvNet, ViT
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore")

SMALL = {  # values of the arguments that make a method large
    "projection_dim": 8, "projection_hidden_dim": 8, "queue_size": 16, "batch_norm_splits": 2, "negatives": 8,
    "buffer_size": 8, "fisher_images": 8, "grid": (1.0,),
}  # fmt: skip
LEARNED = "has begun 2 of its 2 tasks in an earlier run"
NAMES = [name for name in recipe_names() if issubclass(getattr(recipes, name), Recipe)]


class Noise(ImageDataModule):
    """Grey images of ten classes, 8 × 8 pixels.

    Args:
        brightness: of the brightest pixel, from 1 to 255.
    """

    num_classes = 10

    def __init__(self, brightness=255):
        super().__init__(batch_size=8)
        self.brightness = brightness

    def load(self):
        label = torch.arange(40) % 10
        random = torch.Generator().manual_seed(0)
        parts = (torch.randint(0, self.brightness + 1, (40, 1, 8, 8), generator=random) for _ in range(3))
        train, val, test = (ImagesInMemory(part.to(torch.uint8), label) for part in parts)
        return Splits(tuple("abcdefghij"), train, val, test)


def arguments_of(recipe):
    return inspect.signature(recipe.__init__).parameters


def data_for(name, **options):
    if "tasks" not in arguments_of(getattr(recipes, name)):
        return Noise(**options)
    return TaskSequence(Noise(**options), scenario="task", num_tasks=2, batch_size=8)


def build(name, encoder=None):
    """A small recipe with random weights, the same each time."""
    seed_everything(0, verbose=False)
    recipe = getattr(recipes, name)
    known = arguments_of(recipe)
    given = {argument: value for argument, value in SMALL.items() if argument in known}
    if "num_classes" in known:
        given["num_classes"] = 10
    if "tasks" in known:
        given["tasks"] = data_for(name).tasks
    if "teacher" in known:
        given["teacher"] = Teacher([Supervised(ConvNet((4, 6)), 10)], ["a teacher"])
    if encoder is None:
        encoder = ViT(8, 4, 12, 1, 2, in_channels=1, pool="tokens") if name == "DeiT" else ConvNet((4, 6))
    return recipe(encoder, **given)


def fresh(recipe, name):
    """A new recipe with the state of another, as a new process would load it."""
    new, checkpoint = build(name), {"state_dict": copy.deepcopy(recipe.state_dict())}
    recipe.on_save_checkpoint(checkpoint)
    new.on_load_checkpoint(checkpoint)
    new.load_state_dict(checkpoint["state_dict"])
    return new


def trainer(data, **options):
    epochs = -1 if isinstance(data, TaskSequence) else 1
    short = {"max_epochs": epochs, "limit_train_batches": 2, "limit_val_batches": 1, "num_sanity_val_steps": 0}
    return quiet_trainer(**short, **options)


def trained(recipe, data):
    """What training gives: the state of the recipe and the last measures."""
    seed_everything(1, verbose=False)
    run = trainer(data)
    try:
        run.fit(recipe, data)
    except ValueError as refusal:  # a sequence of tasks is learned once
        if not re.search(LEARNED, str(refusal)):
            raise
        return {str(refusal): torch.empty(0)}, {}
    return copy.deepcopy(dict(leaves(recipe.state_dict()))), run.callback_metrics


def leaves(tree, *place):
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, *place, name)
        else:
            yield (*place, name), value


def differing(one, two):
    """The names of what is not the same in two results, to the bit."""
    found = []
    for ours, theirs in zip(one, two, strict=True):
        if ours.keys() != theirs.keys():
            return [f"names: {ours.keys() ^ theirs.keys()}"]
        found += [name for name in ours if not torch.equal(ours[name], theirs[name])]
    return found


class Interrupt(Callback):
    """Interrupts a run, as the keyboard does.

    Args:
        hook: name of the hook, of a batch.
    """

    def __init__(self, hook):
        setattr(self, hook, self._interrupt)

    def _interrupt(self, trainer, recipe, *of_batch):
        raise KeyboardInterrupt


# What may come before a training


def measured_on_other_data(recipe, data, name):
    other = data_for(name, brightness=120)
    quiet_trainer().test(recipe, other, verbose=False)
    quiet_trainer().predict(recipe, other)


def interrupted(recipe, data, name):
    for hook in ("on_train_batch_end", "on_validation_batch_end"):
        with pytest.raises(ValueError, match=LEARNED) if isinstance(data, TaskSequence) else pytest.raises(SystemExit):
            trainer(data, callbacks=[Interrupt(hook)]).fit(recipe, data)


def trained_on_a_plain_loader(recipe, data, name):
    batch = Noise(brightness=200).load().train.__getitems__([*range(32)])
    loader = DataLoader([*zip(*batch, strict=True)], batch_size=8)
    refused = pytest.raises(ValueError, match="pass a DataModule|Give a TaskSequence")
    with refused if isinstance(data, TaskSequence) or name == "SVM" else nullcontext():
        trainer(loader).fit(recipe, loader, loader)


def in_half_precision(recipe, data, name):
    quiet_trainer(precision="bf16-true").test(recipe, data, verbose=False)
    with pytest.raises(ValueError, match=LEARNED) if isinstance(data, TaskSequence) else nullcontext():
        trainer(data, precision="bf16-true").fit(recipe, data)


HISTORY = [in_half_precision, measured_on_other_data, interrupted, trained_on_a_plain_loader]


@dataclass
class Used:
    """A recipe after a training and ``HISTORY``, with its data, and how its encoder was before."""

    name: str
    recipe: Recipe
    data: ImageDataModule
    lent: list[Any]


@pytest.fixture(scope="module", params=NAMES)
def used(request):
    recipe, data = build(request.param), data_for(request.param)
    made = Used(request.param, recipe, data, form(recipe.encoder))
    trained(recipe, data)
    for happens in HISTORY:
        happens(recipe, data, request.param)
    return made


def form(encoder):
    """All of a network except its weights: classes, modes, hooks, what is compiled, and what learns."""
    hooks = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks"
    modules = [(type(part), part.training, *(len(getattr(part, name)) for name in hooks)) for part in encoder.modules()]
    parameters = [(each.dtype, each.requires_grad, each.grad is None) for each in encoder.parameters()]
    return [*modules, *parameters, encoder._compiled_call_impl]


def test_training_does_not_depend_on_what_came_before(used):
    copied, unpickled = copy.deepcopy(used.recipe), pickle.loads(pickle.dumps(used.recipe))
    expected = trained(fresh(used.recipe, used.name), data_for(used.name))
    assert differing(trained(used.recipe, used.data), expected) == []
    assert differing(trained(copied, data_for(used.name)), expected) == []
    assert differing(trained(unpickled, data_for(used.name)), expected) == []


def test_an_encoder_comes_back_as_it_was_lent(used):
    assert form(used.recipe.encoder) == used.lent
    other = "FineTuning" if isinstance(used.data, TaskSequence) else "Supervised"
    expected = trained(build(other, fresh(used.recipe, used.name).encoder), data_for(used.name))
    assert differing(trained(build(other, used.recipe.encoder), used.data), expected) == []
