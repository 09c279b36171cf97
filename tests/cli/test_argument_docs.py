"""Every argument that the command shows has a text, its own or the base class's."""

import inspect

import pytest
from jsonargparse import ArgumentParser

import datamodules
import losses
import recipes
from recipes import augment, nn, optim
from recipes.distillation import ContrastiveDistillation, LayerLoss

SHOWN = (recipes.Recipe, datamodules.ImageDataModule, augment.Views, nn.Encoder, losses.FeatureLoss)
CLASSES = [
    value
    for package in (recipes, datamodules, losses, nn, augment, optim)
    for name in package.__all__
    if inspect.isclass(value := getattr(package, name)) and issubclass(value, SHOWN)
    if value is not nn.Encoder  # wraps any network: for Python
] + [ContrastiveDistillation, LayerLoss]


def texts(kind):
    """What ``--help`` shows for each argument of a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    ours = [action for action in parser._actions if action.dest != "help" and not action.dest.endswith(".help")]
    return {action.dest: action.help for action in ours}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_help_has_a_text_for_every_argument_and_it_begins_with_a_noun(kind):
    arguments = texts(kind)
    assert arguments.keys() >= set(inspect.signature(kind.__init__).parameters) - {"self", "args", "kwargs"}
    assert not [name for name, text in arguments.items() if not text]
    assert not [name for name, text in arguments.items() if text.startswith(("of ", "that ", "whose ", "for "))]


def test_an_argument_without_a_text_is_noticed():
    class Silent(recipes.Recipe):
        """A recipe that documents nothing."""

        def __init__(self, encoder: nn.Encoder, width: int = 3) -> None: ...

    found = texts(Silent)
    assert found["width"] is None
    assert found["encoder"] == texts(recipes.Recipe)["encoder"]
