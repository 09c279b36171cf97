"""Where a run writes is never decided by a checkpoint, and each argument in it takes only what belongs there."""

import inspect
import os
import re
from pathlib import Path
from typing import get_type_hints

import lightning.pytorch.callbacks
import lightning.pytorch.loggers
import lightning.pytorch.profilers
import lightning.pytorch.strategies
import pytest
import torch
import yaml
from jsonargparse._parameter_resolvers import get_signature_parameters
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy

import datamodules
import losses
import recipes
import recipes.augment
import recipes.callbacks
import recipes.nn
import recipes.optim
from datamodules.paths import WRITTEN
from recipes import SimCLR
from recipes.base.kinds import kinds_of
from recipes.base.loaded import RUN_DIRECTORY, taken
from recipes.base.recipe import AnyRecipe
from recipes.cli import main
from recipes.nn import ConvNet
from tests.helpers.pictures import write_pictures

ENCODER = {"class_path": "recipes.nn.ConvNet", "init_args": {"in_channels": 1, "widths": [4]}}
MODEL = {"class_path": "recipes.SimCLR", "init_args": {"encoder": ENCODER, "projection_dim": 4}}
DIGITS = {"class_path": "datamodules.Digits", "init_args": {"batch_size": 512}}
SHORT = {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 0, "accelerator": "cpu", "logger": True}
OUTSIDE = "outside/place"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def places(config):
    """The keys that are left out, and the rest of the configuration."""
    kept, left_out = taken({"model": MODEL, **config}, AnyRecipe)
    return left_out, kept


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"runs": "elsewhere"}, "runs"),
        ({"name": "../.."}, "name"),
        ({"name": "/tmp"}, "name"),
        ({"prediction": {"filename": "../x.npz"}}, "prediction.filename"),
        ({"prediction": {"filename": "/tmp/x.npz"}}, "prediction.filename"),
        ({"trainer": {"default_root_dir": "x"}}, "trainer.default_root_dir"),
        ({"data": {"class_path": "datamodules.ImageFolder", "init_args": {"root": "/a", "cache": "b"}}}, "data.cache"),
    ],
)
def test_a_place_to_write_to_is_not_taken(config, key):
    assert places(config)[0] == [key]


def test_a_place_within_other_data_is_not_taken():
    folder = {"class_path": "datamodules.ImageFolder", "init_args": {"root": "/a", "cache": "b"}}
    data = {"class_path": "datamodules.SemiSupervised", "init_args": {"base": folder, "labelled_per_batch": 4}}
    left_out, kept = places({"data": data})
    assert left_out == ["data.base.cache"]
    assert kept["data"]["init_args"]["base"]["init_args"] == {"root": "/a"}


def test_what_is_read_is_taken():
    folder = {"class_path": "datamodules.ImageFolder", "init_args": {"root": "/a/../b", "cache": True}}
    config = {"data": folder, "seed_everything": 3, "name": "mine", "probe": {"k": 5}, "trainer": {"max_epochs": 3}}
    left_out, kept = places(config)
    assert left_out == []
    assert kept == {"model": MODEL, **config}


OF_LIGHTNING = {
    "callbacks": lightning.pytorch.callbacks,
    "logger": lightning.pytorch.loggers,
    "profiler": lightning.pytorch.profilers,
    "strategy": lightning.pytorch.strategies,
}
KINDS = {"callbacks": Callback, "logger": Logger, "profiler": Profiler, "strategy": Strategy}
# texts that name no place, or one within a directory that a checkpoint does not decide
HARMLESS = [
    "accelerator",
    "add_file_policy",
    "api_key",
    "artifact_description",
    "attr_name",
    "batch_arg_name",
    "checkpoint_name",
    "config",
    "config_exclude_keys",
    "config_include_keys",
    "device",
    "devices",
    "duration",
    "entity",
    "experiment_key",
    "experiment_name",
    "filename",
    "fork_from",
    "gradient_clip_algorithm",
    "group",
    "id",
    "interval",
    "job_type",
    "log_model",
    "logging_batch_size_per_gpu",
    "max_time",
    "metadata",
    "metric",
    "mode",
    "model_registry",
    "monitor",
    "name",
    "notes",
    "nvme_path",
    "offload_optimizer_device",
    "offload_params_device",
    "parameter_names",
    "parameters_to_prune",
    "prefix",
    "process_group_backend",
    "profiler",
    "project",
    "pruning_fn",
    "remote_device",
    "resume_from",
    "run_id",
    "run_name",
    "separator",
    "sort_by_key",
    "strategy",
    "tags",
    "teamspace",
    "val_check_interval",
    "version",
    "workspace",
]


@pytest.mark.parametrize(
    ("slot", "name"),
    [
        (slot, name)
        for slot, module in OF_LIGHTNING.items()
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, KINDS[slot])
    ],
)
def test_no_class_of_lightning_gets_a_place_from_a_checkpoint(slot, name):
    kind = getattr(OF_LIGHTNING[slot], name)
    arguments = {
        parameter.name: OUTSIDE
        for parameter in get_signature_parameters(kind, None)
        if str in kinds_of(parameter.annotation) and parameter.name not in HARMLESS
    }
    spec = {"class_path": f"{OF_LIGHTNING[slot].__name__}.{name}", "init_args": arguments}
    _, kept = places({"trainer": {slot: [spec] if slot == "callbacks" else spec}})
    spec = kept["trainer"][slot]
    spec = spec[0] if isinstance(spec, list) else spec
    assert set(spec["init_args"].values()) <= {RUN_DIRECTORY}
    for parameter in get_signature_parameters(kind, None):
        if parameter.name in arguments and parameter.default is inspect.Parameter.empty:
            assert spec["init_args"][parameter.name] == RUN_DIRECTORY


READ = {"root", "weights", "teacher", "sources", "filename"}  # filename is relative to the directory of the run
OURS = [
    value
    for module in (datamodules, losses, recipes, recipes.augment, recipes.callbacks, recipes.nn, recipes.optim)
    for value in vars(module).values()
    if inspect.isclass(value) and value.__module__.split(".")[0] in ("datamodules", "losses", "recipes")
]


@pytest.mark.parametrize("kind", sorted(set(OURS), key=str), ids=lambda kind: kind.__name__)
def test_an_argument_that_is_written_to_says_so_in_its_type(kind):
    """By the docs of an argument: a file or folder is read, by a name that is known, or its type is OutputPath."""
    hints = get_type_hints(kind.__init__, include_extras=True) if "__init__" in vars(kind) else {}
    docs = dict(re.findall(r"^ {8}(\w+): ([^:]*)", inspect.getdoc(kind) and kind.__doc__ or "", re.M))
    for name, hint in hints.items():
        texts = {str, Path} & kinds_of(hint)
        if texts and (Path in texts or re.search(r"\b(file|folder|director(y|ies))\b", docs.get(name, ""))):
            assert name in READ or WRITTEN in kinds_of(hint) or name in ("paths", "directory", "config"), name


def saved(**config):
    """The path of a checkpoint whose configuration is that of a run, but for the sections given."""
    whole = {"model": MODEL, "data": DIGITS, "trainer": SHORT, "pictures": {"points": 20}, **config}
    texts = {"model": yaml.safe_dump(whole["model"]), "config": yaml.safe_dump(whole)}
    weights = SimCLR(ConvNet((4,), in_channels=1), 4).state_dict()
    checkpoint = {**texts, "pytorch-lightning_version": lightning.__version__}
    torch.save({**checkpoint, "state_dict": weights, "recipe": "SimCLR", "image_shape": [1, 16, 16]}, "some.ckpt")
    return "some.ckpt"


def files(folder="."):
    return {str(path) for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_commands_write_to_their_own_run_directory_alone(tmp_path, monkeypatch):
    write_pictures(tmp_path / "pictures", ("a", "b"), 20)
    data = {
        "class_path": "datamodules.ImageFolder",
        "init_args": {"root": "pictures", "cache": "victim", "channels": 1, "image_size": 16, "batch_size": 8},
    }
    loggers = [{"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "victims"}}]
    best = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"dirpath": "victims"}}
    profiler = {"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": {"dirpath": "victims"}}
    places = {"default_root_dir": "victims", "logger": loggers, "callbacks": [best], "profiler": profiler}
    trainer = {**SHORT, **places}
    checkpoint = saved(
        data=data, trainer=trainer, runs="victims", name="../victims", prediction={"filename": "../../../victim.npz"}
    )
    (tmp_path / "victim").write_text("precious")
    before = files()
    for command in ("test", "predict", "validate"):
        main([command, "--ckpt_path", checkpoint, "--trainer.limit_val_batches", "1"])
    assert {path.split("/")[0] for path in files() - before} == {"runs"}
    assert (tmp_path / "victim").read_text() == "precious"
    assert os.listdir("runs") == ["simclr-imagefolder"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_resumes_in_a_directory_of_its_own_under_runs():
    args = ["--data.batch_size", "512", "--trainer.max_epochs", "1", "--model.encoder.widths", "[4]"]
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "elsewhere"]
    main(["fit", "--config", "simclr-digits", *args, *logger, "--runs", "mine", "--name", "some"])
    (first,) = Path("mine/some").iterdir()
    assert files("elsewhere")
    before = files("mine") | files("elsewhere")
    main(["fit", "--ckpt_path", str(first), "--trainer.max_epochs", "2"])
    (second,) = Path("runs/some").iterdir()
    assert torch.load(second / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 1
    assert files("mine") | files("elsewhere") == before
