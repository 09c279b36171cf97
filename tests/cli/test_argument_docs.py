"""Every argument that the command shows has a text, its own or the base class's, and the text begins with a noun."""

import argparse
import inspect

import pytest
from jsonargparse import ArgumentParser

import datamodules
import losses
import recipes
from recipes import augment, callbacks, nn, optim
from recipes.cli.command import OF_LIGHTNING, OF_OUR_OWN, main
from recipes.distillation import ContrastiveDistillation, LayerLoss

SHOWN = (recipes.Recipe, datamodules.ImageDataModule, augment.Views, nn.Encoder, losses.FeatureLoss)
CLASSES = [
    value
    for package in (recipes, datamodules, losses, nn, augment, optim)
    for name in package.__all__
    if inspect.isclass(value := getattr(package, name)) and issubclass(value, SHOWN)
    if value is not nn.Encoder  # wraps any network: for Python
] + [ContrastiveDistillation, LayerLoss]
CALLBACKS = [value for name in callbacks.__all__ if inspect.isclass(value := getattr(callbacks, name))]
FRAGMENTS = ("of ", "whose ", "that ", "for ", "at most so many", "how many")


def fragments(arguments):
    """The texts that are no noun phrase."""
    return {name: text for name, text in arguments.items() if text and text.lower().startswith(FRAGMENTS)}


def options(command, monkeypatch):
    """The text of each option of a command, except those of Lightning's Trainer."""
    shown = []
    monkeypatch.setattr(argparse.ArgumentParser, "print_help", lambda parser, file=None: shown.append(parser))
    with pytest.raises(SystemExit):
        main([command, "--help"])
    ours = [action for action in shown[-1]._actions if not action.dest.startswith("trainer.")]
    return {action.dest: action.help for action in ours if action.help != argparse.SUPPRESS}


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
    assert not fragments(arguments)


@pytest.mark.parametrize("kind", CALLBACKS, ids=lambda kind: kind.__name__)
def test_help_of_a_callback_begins_with_a_noun(kind):
    assert not fragments(texts(kind))


@pytest.mark.parametrize("command", [*OF_LIGHTNING, *OF_OUR_OWN])
def test_help_of_a_command_has_a_text_for_every_option_and_it_begins_with_a_noun(command, monkeypatch):
    found = options(command, monkeypatch)
    assert len(found) > 2
    assert not [name for name, text in found.items() if not text]
    assert not fragments(found)


def test_a_text_without_a_noun_is_noticed():
    assert fragments({"a": "of the run", "b": "number of images", "c": "At most so many images"}).keys() == {"a", "c"}


def test_an_argument_without_a_text_is_noticed():
    class Silent(recipes.Recipe):
        """A recipe that documents nothing."""

        def __init__(self, encoder: nn.Encoder, width: int = 3) -> None: ...

    found = texts(Silent)
    assert found["width"] is None
    assert found["encoder"] == texts(recipes.Recipe)["encoder"]
