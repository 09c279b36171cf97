"""A class that is chosen starts from its own defaults, and options that are dropped are named."""

import inspect

import pytest
import torch
import yaml

import recipes
from recipes.cli import main
from recipes.cli.catalogue import recipe_names
from recipes.cli.training import Command

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]


class Parsed(Exception):  # noqa: N818
    """Ends the command when its configuration is parsed."""


@pytest.fixture
def parse(monkeypatch):
    """Parses the arguments of ``fit``: returns the configuration as plain values, and the lines that are logged."""

    def parsed(*args):
        lines = []

        def stop(self):
            text = self._parser("fit").dump(self.config["fit"], skip_unset=False)
            raise Parsed(yaml.safe_load(text))

        monkeypatch.setattr("recipes.cli.training.rank_zero_info", lines.append)
        monkeypatch.setattr(Command, "before_instantiate_classes", stop)
        with pytest.raises(Parsed) as ended:
            main(["fit", *args])
        return ended.value.args[0], lines

    return parsed


def own_defaults(kind, given):
    parameters = inspect.signature(kind.__init__).parameters
    return {name: parameters[name].default for name in given}


def plain(values):
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def arguments_of(config, name):
    return config["model"]["init_args"][name]["init_args"]


def takes(recipe, argument):
    return argument in inspect.signature(getattr(recipes, recipe).__init__).parameters


@pytest.mark.parametrize("recipe", [name for name in recipe_names() if takes(name, "optimizer")])
def test_an_optimiser_and_a_schedule_start_from_their_own_defaults_in_every_recipe(parse, recipe):
    chosen = {"optimizer": torch.optim.NAdam, "scheduler": torch.optim.lr_scheduler.CosineAnnealingWarmRestarts}
    options = [f"--model.{name}={kind.__name__}" for name, kind in chosen.items()]
    options += ["--model.teacher=run"] if takes(recipe, "teacher") else []
    config, lines = parse("--model", recipe, "--model.encoder", "ConvNet", *options, "--model.scheduler.T_0=3")
    given = plain(arguments_of(config, "optimizer"))
    assert given == plain(own_defaults(torch.optim.NAdam, given))
    schedule = arguments_of(config, "scheduler")
    assert (schedule.pop("T_0"), schedule) == (3, own_defaults(chosen["scheduler"], schedule))
    assert lines == []


def test_an_optimiser_in_a_config_does_not_mix_with_that_of_the_recipe(parse, tmp_path):
    (tmp_path / "own.yaml").write_text(
        "model:\n  class_path: LwF\n  init_args:\n    encoder: ConvNet\n"
        "    optimizer: {class_path: Adam, init_args: {lr: 0.25}}\n"
    )
    config, lines = parse("--config", str(tmp_path / "own.yaml"))
    given = arguments_of(config, "optimizer")
    assert (given["lr"], given["weight_decay"]) == (0.25, 0)
    assert lines == []


def test_options_of_another_optimiser_are_dropped_and_named(parse):
    config, lines = parse("--config", "simclr-digits", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.5")
    given = arguments_of(config, "optimizer")
    assert (given["lr"], given["weight_decay"], given["momentum"]) == (0.5, 0, 0)
    assert lines == ["model.optimizer is SGD, no longer AdamW: dropped: weight_decay (0.0001)"]


def test_options_before_the_class_on_the_command_line_are_named_too(parse):
    least = "--model", "SimCLR", "--model.encoder", "ConvNet"
    config, lines = parse(*least, "--model.optimizer=SGD", "--model.optimizer.lr=5", "--model.optimizer=AdamW")
    assert arguments_of(config, "optimizer")["lr"] == 1e-3
    assert lines == ["model.optimizer is AdamW, no longer SGD: dropped: lr (5)"]


def test_another_encoder_does_not_keep_the_weights_but_the_channels(parse):
    config, lines = parse("--config", "finetune-folder", "--model.encoder", "ResNet")
    assert arguments_of(config, "encoder")["weights"] is None
    assert lines == [
        "model.encoder is ResNet, no longer TorchvisionEncoder: dropped: name (resnet18), weights (DEFAULT)"
    ]
    config, lines = parse("--config", "simclr-digits", "--model.encoder", "ResNet")
    assert arguments_of(config, "encoder")["in_channels"] == 1
    assert lines == []


def test_another_recipe_keeps_what_it_takes_and_names_what_is_dropped(parse):
    config, lines = parse("--config", "finetune-folder", "--model", "LinearProbe")
    assert arguments_of(config, "encoder")["weights"] == "DEFAULT"
    assert arguments_of(config, "views")["size"] == 224
    (line,) = lines
    assert line == (
        "model is LinearProbe, no longer FineTune: dropped: stages (fine-tune-all), class_weights (balanced), "
        "label_smoothing (0.1); kept: encoder, views"
    )


def test_another_datamodule_keeps_the_batch_size_and_names_what_is_dropped(parse):
    config, lines = parse("--config", "supervised-digits", "--data", "CIFAR10")
    assert config["data"]["init_args"]["batch_size"] == 128
    assert lines == ["data is CIFAR10, no longer Digits: dropped: size (16); kept: batch_size"]


def test_a_recipe_in_a_complete_config_does_not_keep_the_defaults_of_another(parse, tmp_path):
    whole, _ = parse("--model", "SimCLR", "--model.encoder", "ConvNet", "--model.projection_dim", "32")
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(whole))
    config, _ = parse("--config", str(tmp_path / "whole.yaml"), "--model", "BYOL")
    assert config["model"]["init_args"]["projection_dim"] == 32
    assert arguments_of(config, "optimizer")["lr"] == 0.2  # BYOL's own
