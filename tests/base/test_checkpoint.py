"""A checkpoint runs and imports nothing that the user has not named."""

import os
import sys

import lightning
import pytest
import torch
import yaml

import recipes
from recipes import SimCLR
from recipes.base.checkpoint import config_of
from recipes.cli import main
from recipes.distillation import teacher_from
from recipes.nn import ConvNet
from tests.helpers.own_modules import forgotten

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", r"ignore:\s*Importing '.*' is not allowed")

TOUCH = {"class_path": "os.system", "init_args": {"command": "touch ran"}}
SPAWN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "ran"]}}
MODULE = """
from pathlib import Path
from recipes import SimCLR
from recipes.nn import ConvNet
Path("ran").touch()
class Recipe(SimCLR): pass
class Net(ConvNet): pass
"""
HOSTILE = {
    "a function as optimiser": {"optimizer": TOUCH},
    "a function as schedule": {"scheduler": TOUCH},
    "a function as a string": {"optimizer": "os.system"},
    "a function in YAML in a string": {"optimizer": yaml.safe_dump(TOUCH)},
    "a function that a trusted module has imported": {"optimizer": {**TOUCH, "class_path": "torch.hub.os.system"}},
    "a function of a trusted module": {
        "optimizer": {"class_path": "torch.hub.load", "init_args": {"repo_or_dir": ".", "source": "local"}}
    },
    "a class of another kind as encoder": {"encoder": SPAWN},
    "a class of another kind as optimiser": {"optimizer": SPAWN},
    "a module as a string": {"encoder": "this.X"},
    "a module of the current folder": {"encoder": {"class_path": "strange.Net"}},
    "a module of the current folder as a string": {"encoder": "strange.Net"},
    "a file with a configuration": {"encoder": "hostile.yaml"},
    "a program of a trusted package": {"encoder": {"class_path": "recipes.__main__.Net"}},
    "a function of timm as optimiser": {
        "optimizer": {"class_path": "timm.create_model", "init_args": {"model_name": "x"}}
    },
    "a function of timm as a string": {"optimizer": "timm.create_model"},
    "a function as loss": {"views": "torch.hub.load"},
    "a class where no class belongs": {"temperature": {"class_path": "torch.optim.SGD"}},
    "a schedule as optimiser": {"optimizer": {"class_path": "torch.optim.lr_scheduler.StepLR"}},
    "no name of a class": {"encoder": {"class_path": ["recipes.nn.ConvNet"]}},
}


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """A current folder with a module and a file that a checkpoint may try to reach."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "strange.py").write_text(MODULE)
    (tmp_path / "hubconf.py").write_text(MODULE)
    (tmp_path / "hostile.yaml").write_text(yaml.safe_dump(SPAWN))
    with forgotten(monkeypatch):
        sys.path.append(str(tmp_path))
        yield


def model(**changes):
    """The configuration of a recipe that could be loaded, but for the changes."""
    encoder = {"class_path": "recipes.nn.ConvNet", "init_args": {"in_channels": 1, "widths": [4]}}
    return {"class_path": "recipes.SimCLR", "init_args": {"encoder": encoder, "projection_dim": 4, **changes}}


def saved(model, **config):
    """The path of a checkpoint with this configuration."""
    texts = {"model": yaml.safe_dump(model), "config": yaml.safe_dump({"model": model, **config})}
    weights = SimCLR(ConvNet((4,), in_channels=1), 4).state_dict()
    texts["pytorch-lightning_version"] = lightning.__version__
    torch.save({**texts, "state_dict": weights, "recipe": "SimCLR", "image_shape": [1, 16, 16]}, "some.ckpt")
    return "some.ckpt"


def assert_nothing_ran():
    assert not os.path.exists("ran")
    assert not {"this", "strange", "hubconf"} & set(sys.modules)


def refused(args, capsys):
    """The one line with which the command ends."""
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    (line,) = [line for line in lines if line.startswith("recipes: error: ")]
    assert line == lines[-1]
    return line


def test_the_checkpoint_of_these_tests_is_loaded_if_nothing_is_changed():
    assert recipes.load(saved(model())).feature_dim == 4


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_load_refuses_a_checkpoint_that_names_strange_code(changes):
    with pytest.raises(ValueError, match="^the configuration in some.ckpt cannot be used: ") as refusal:
        recipes.load(saved(model(**changes)))
    assert "\n" not in str(refusal.value)
    assert_nothing_ran()


@pytest.mark.parametrize("changes", HOSTILE.values(), ids=HOSTILE)
def test_the_command_refuses_a_checkpoint_that_names_strange_code(changes, capsys):
    refused(["fit", "--ckpt_path", saved(model(**changes))], capsys)
    assert_nothing_ran()


@pytest.mark.parametrize("path", ["recipes.load", "strange.Recipe", "os.system"])
def test_a_checkpoint_whose_recipe_is_strange_code_is_refused(path, capsys):
    checkpoint = saved({"class_path": path, "init_args": {"path": saved(model())}})
    with pytest.raises(ValueError, match="cannot be used"):
        recipes.load(checkpoint)
    refused(["fit", "--ckpt_path", checkpoint], capsys)
    assert_nothing_ran()


@pytest.mark.parametrize(
    "args",
    [
        ["validate", "--ckpt_path", "some.ckpt"],
        ["test", "--ckpt_path", "some.ckpt"],
        ["predict", "--ckpt_path", "some.ckpt"],
        ["export", "--ckpt_path", "some.ckpt", "--formats", "torch"],
        ["probe", "--encoder", "some.ckpt"],
        ["advise", "--encoder", "some.ckpt"],
        ["fit", "--config", "distill-digits", "--model.teacher", "some.ckpt"],
    ],
)
def test_no_command_runs_code_that_a_checkpoint_names(args, capsys):
    saved(model(optimizer=TOUCH))
    assert "os.system" in refused(args, capsys)
    assert_nothing_ran()


def test_a_teacher_is_refused_like_any_checkpoint():
    with pytest.raises(ValueError, match=r"os\.system"):
        teacher_from(saved(model(optimizer=TOUCH)))
    assert_nothing_ran()


@pytest.mark.parametrize(
    "config",
    [
        {"trainer": {"callbacks": [{"class_path": "strange.Net"}]}},
        {"trainer": {"logger": {"class_path": "strange.Net"}}},
        {"data": {"class_path": "strange.Data"}},
    ],
)
def test_no_part_of_the_configuration_in_a_checkpoint_names_strange_code(config, capsys):
    assert "strange" in refused(["fit", "--ckpt_path", saved(model(), **config)], capsys)
    assert_nothing_ran()


STRANGE = {"class_path": "strange.Net"}


@pytest.mark.parametrize("command", ["fit", "test", "predict"])
@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({}, {"trainer": {"max_epochs": STRANGE}}),
        ({}, {"name": STRANGE}),
        ({}, {"probe": {"k": STRANGE}}),
        ({}, {"data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": "class_path='strange.Net'"}}}),
        ({"temperature": STRANGE}, {}),
        ({"unknown": STRANGE}, {}),
    ],
)
def test_no_class_is_imported_where_no_class_belongs(command, changes, config, capsys):
    refused([command, "--ckpt_path", saved(model(**changes), **config)], capsys)
    assert_nothing_ran()


def test_the_import_in_a_checkpoint_is_not_obeyed(capsys):
    checkpoint = saved(model(encoder={"class_path": "strange.Net"}), **{"import": ["strange.py"]})
    assert "--import FILE" in refused(["fit", "--ckpt_path", checkpoint], capsys)
    assert_nothing_ran()


def test_a_module_that_the_user_names_is_accepted():
    checkpoint = saved(model(encoder={"class_path": "strange.Net", "init_args": {"in_channels": 1, "widths": [4]}}))
    with pytest.raises(ValueError, match=r"strange\.Net, whose module is not trusted: add --import FILE"):
        recipes.load(checkpoint)
    assert type(recipes.load(checkpoint, imports=["strange.py"]).encoder).__name__ == "Net"


def test_a_module_that_was_imported_but_not_named_is_refused():
    __import__("strange")
    with pytest.raises(ValueError, match="is not trusted"):
        recipes.load(saved(model(encoder={"class_path": "strange.Net"})))


def test_loading_leaves_the_settings_of_jsonargparse_as_they_were():
    from jsonargparse._common import parsing_settings

    before = dict(parsing_settings)
    recipes.load(saved(model()))
    assert parsing_settings == before


@pytest.mark.parametrize("changes", [{"optimizer": TOUCH}, {"encoder": SPAWN}, {"optimizer": SPAWN}])
def test_a_config_of_the_user_cannot_call_a_function_either(changes, capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": model(**changes)}))
    assert "must be a class" in refused(["fit", "--config", "mine.yaml"], capsys)
    assert_nothing_ran()


@pytest.mark.parametrize("given", [None, "name", "position"])
def test_a_run_that_is_older_than_the_split_by_name_keeps_its_split(given, tmp_path):
    arguments = {"root": "pictures", **({"split_by": given} if given else {})}
    folder = {"class_path": "datamodules.ImageFolder", "init_args": arguments}
    data = {"class_path": "datamodules.TaskSequence", "init_args": {"base": folder, "then": [folder]}}
    torch.save({"config": yaml.safe_dump({"data": data}), "model": "", "state_dict": {}}, tmp_path / "old.ckpt")
    found = config_of(tmp_path / "old.ckpt")["data"]["init_args"]
    for part in (found["base"], *found["then"]):
        assert part["init_args"]["split_by"] == (given or "position")
