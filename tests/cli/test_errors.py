"""Users' mistakes end with code 2 and one line that says what was given, what is allowed and what to do."""

import errno
import os
import subprocess
import sys

import pytest
from jsonargparse import Namespace

from datamodules import CIFAR10, ImageFolder
from recipes.base.checkpoint import checkpoint_path
from recipes.cli import main
from recipes.cli.options import with_homes

DIGITS = ["fit", "--config", "simclr-digits"]

DISTILL = ["fit", "--config", "distill-digits"]


def message_of(args, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("recipes: error: ")]) == 1
    return lines[-1]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fti"], ["'fti'", "did you mean 'fit'?"]),
        ([*DIGITS, "--data.root", "pic\udcfftures"], [r"pic\xfftures is not UTF-8 text: rename", "ln -s"]),
        (["fit"], ["no model given", "--config simclr-digits"]),
        (["fit", "--config", "simclr-digit"], ["'simclr-digit'", "did you mean 'simclr-digits'?", "recipes list"]),
        (["fit", "--model", "SimCRL"], ["'SimCRL'", "did you mean 'SimCLR'?"]),
        (["fit", "--model", "SimCLR"], ["SimCLR needs a value for encoder"]),
        ([*DIGITS, "--data", "Digit"], ["'Digit'", "did you mean 'Digits'?"]),
        ([*DIGITS, "--model.encoder", "ConvNt"], ["'ConvNt'", "did you mean 'ConvNet'?"]),
        ([*DIGITS, "--model.optimizer", "AdmW"], ["'AdmW'", "did you mean 'AdamW'?"]),
        ([*DIGITS, "--model.temprature", "0.1"], ["SimCLR", "'temprature'", "did you mean 'temperature'?"]),
        ([*DIGITS, "--model.encoder.widht", "[8]"], ["ConvNet", "'widht'", "did you mean 'widths'?"]),
        ([*DIGITS, "--data.bath_size", "8"], ["Digits", "'bath_size'", "did you mean 'batch_size'?"]),
        ([*DIGITS, "--trainer.maxepochs", "8"], ["'trainer.maxepochs'", "did you mean 'trainer.max_epochs'?"]),
        ([*DIGITS, "--prob.k", "8"], ["'prob.k'", "did you mean 'probe.k'?"]),
        ([*DIGITS, "--data.batch_size", "many"], ["batch_size is many", "must be an integer"]),
        ([*DIGITS, "--trainer.max_epochs", "many"], ["max_epochs is many", "must be an integer or null"]),
        ([*DIGITS, "--model.temperature", "0"], ["temperature is 0.0", "positive"]),
        ([*DIGITS, "--data.size", "4"], ["size is 4", "at least"]),
        ([*DIGITS, "--model.encoder.in_channels", "3"], ["1 channel", "takes 3", "in_channels"]),
        ([*DIGITS, "--data.batch_size", "5000"], ["5000", "1257"]),
        ([*DIGITS, "--compile", "inductr"], ["no backend 'inductr'", "inductor"]),
        ([*DISTILL, "--model.teacher", "nowhere"], ["no teacher at nowhere", "a config teacher-* of 'recipes list'"]),
        ([*DISTILL, "--model.teacher", "torchvision:resnt18"], ["'resnt18'", "'resnet18'"]),
        (
            [*DISTILL, "--model.layer_losses", '[{"loss": {"class_path": "losses.Hnt"}}]'],
            ["Hnt", "did you mean 'Hint'?"],
        ),
        (["test", "--ckpt_path", "nowhere"], ["no checkpoint at nowhere"]),
        (["fit", "--config", "simclr-folder", "--data.root", "nowhere"], ["nowhere is not there"]),
    ],
)
def test_a_mistake_ends_with_code_2_and_one_line(args, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = message_of(args, capsys)
    for word in words:
        assert word in message, message


@pytest.mark.slow
def test_a_batch_size_that_does_not_divide_over_two_devices_names_both(tmp_path):
    devices = ["--trainer.accelerator", "cpu", "--trainer.devices", "2"]
    command = [sys.executable, "-m", "recipes", *DIGITS, *devices, "--data.batch_size", "257"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("recipes: error: ")]
    assert "257" in line
    assert "2 devices" in line


def test_images_too_small_for_the_encoder_are_an_error_before_training(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = [*DIGITS, "--model.encoder", "TorchvisionEncoder", "--model.encoder.name", "alexnet"]
    message = message_of([*args, "--model.encoder.in_channels", "1"], capsys)
    assert "16×16" in message
    assert "larger images" in message


def test_a_mistake_in_a_config_file_is_named_like_one_on_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(
        "model:\n  class_path: recipes.SimCLR\n  init_args:\n    encoder: {class_path: recipes.nn.ConvNet}\n"
        "    tempature: 0.1\n"
    )
    assert "did you mean 'temperature'?" in message_of(["fit", "--config", "mine.yaml"], capsys)


def test_a_broken_checkpoint_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.ckpt").write_bytes(b"not a checkpoint")
    assert "broken.ckpt" in message_of(["test", "--ckpt_path", "broken.ckpt"], capsys)


def test_an_error_of_the_code_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    import torch

    # a ValueError as users' mistakes are, but raised by no code of ours
    monkeypatch.setattr(torch.nn.functional, "normalize", lambda *_, **__: int("many"))
    with pytest.raises(ValueError, match="invalid literal"):
        main([*DIGITS, "--trainer.fast_dev_run", "1"])


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--name=../../evil", ["name is '../../evil'", "within --runs"]),
        ("--name=/tmp/evil", ["within --runs"]),
        ("--name=", ["name is ''"]),
        ("--name=.", ["name is '.'"]),
        (f"--name={'n' * 300}", ["300 characters", "255 bytes"]),
        ("--runs=", ["runs is empty"]),
        ("--runs=/proc/nowhere", ["no run directory can be made in /proc/nowhere", "choose other --runs"]),
        ("--runs=/dev/null", ["Not a directory"]),
        (f"--runs={'n' * 300}", ["File name too long"]),
        ("--model.optimizer.lr=-1", ["optimizer cannot be created", "learning rate: -1.0", "Change model.optimizer"]),
        ("--model.optimizer.weight_decay=-1", ["optimizer cannot be created", "weight_decay"]),
        ("--seed_everything=-1", ["seed_everything is -1", "between 0 and 4294967295"]),
        ("--seed_everything=99999999999", ["between 0 and"]),
        ("--trainer.devices=-5", ["trainer.devices is -5", "auto, -1"]),
        ("--trainer.devices=0", ["trainer.devices is 0"]),
        ("--trainer.devices=many", ["trainer.devices is many"]),
        ("--trainer.devices=[]", ["trainer.devices is []"]),
        ("--trainer.num_nodes=0", ["trainer.num_nodes is 0: it must be at least 1"]),
        ("--trainer.accelerator=cdua", ["trainer.accelerator is cdua", "did you mean 'cuda'?", "cpu"]),
        ("--trainer.strategy=dpp", ["trainer.strategy is dpp", "did you mean 'ddp'?"]),
        ("--trainer.max_epochs=-3", ["the Trainer cannot be created", "max_epochs", "-3"]),
        ("--trainer.max_time=foo", ["the Trainer cannot be created", "DD:HH:MM:SS"]),
        ("--trainer.accumulate_grad_batches=0", ["accumulate_grad_batches is 0: it must be at least 1"]),
        ("--trainer.accumulate_grad_batches=-1", ["must be at least 1"]),
        ("--trainer.gradient_clip_val=-1", ["gradient_clip_val is -1"]),
        ("--trainer.profiler=foo", ["the Trainer cannot be created", "simple"]),
        ("--trainer.max_epoch=3", ["no option 'trainer.max_epoch'", "did you mean 'trainer.max_epochs'?"]),
        ("--trainer.max_ep=3", ["no option 'trainer.max_ep'"]),
        ("--nam=x", ["no option 'nam'", "did you mean 'name'?"]),
        ("--model.temperature=null", ["temperature is null: it must be a number"]),
        ("--model.optimizer=null", ["optimizer is null", "inherits from Optimizer"]),
        ("--data.batch_size=null", ["batch_size is null: it must be an integer"]),
        ("--trainer.callbacks=EarlyStoping", ["'EarlyStoping'", "did you mean 'EarlyStopping'?", "Callback"]),
        ("--trainer.callbacks+=EarlyStoping", ["did you mean 'EarlyStopping'?"]),
        ("--trainer.logger=WandLogger", ["'WandLogger'", "did you mean 'WandbLogger'?"]),
        ("--trainer.logger=foo", ["there is no 'foo'", "inherits from Logger"]),
        ("--model.optimizer=SimCLR", ["there is no 'SimCLR'; it must be a class that inherits from Optimizer"]),
        ("--model.optimizer=torch.nn.Linear", ["must be a class that inherits from Optimizer"]),
        ("--model.scheduler=3", ["inherits from LRScheduler"]),
        ("--model.scheduler=StepLR", ["StepLR needs a value for step_size"]),
        ("--model.scheduler=lightning.pytorch.cli.ReduceLROnPlateau", ["ReduceLROnPlateau needs a value for monitor"]),
        (
            "--model.scheduler=ReduceLROnPlateau",
            ["scheduler is ReduceLROnPlateau", "lightning.pytorch.cli.ReduceLROnPlateau (needs a value for monitor)"],
        ),
        ("--model.encoder=3", ["inherits from Encoder"]),
        ("--ckpt_path=", ["no checkpoint"]),
        ("--ckpt_path=/bin/ls", ["/bin/ls", "checkpoint"]),
    ],
)
def test_an_option_out_of_its_range_is_refused_and_nothing_is_left(option, words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = message_of([*DIGITS, option], capsys)
    for word in words:
        assert word in message, message
    for noise in ("Traceback", "Union", "Namespace", "Parser key"):
        assert noise not in message
    assert not list(tmp_path.iterdir())


def test_a_classifier_on_a_root_one_level_too_high_is_told_the_folder_to_set(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("cat", "dog"):
        (tmp_path / "nest" / "pictures" / name).mkdir(parents=True)
    data = ["--data", "ImageFolder", "--data.root", "nest"]
    message = message_of(["fit", "--config", "supervised-digits", *data], capsys)
    assert "no labels: set root to nest/pictures, whose folders are cat, dog" in message


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
@pytest.mark.parametrize("ckpt_path", [[], ["--ckpt_path", "last"], ["--ckpt_path", "best"]])
def test_no_network_is_measured_untrained_unless_asked_for(command, ckpt_path, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = message_of([command, "--config", "simclr-digits", *ckpt_path], capsys)
    assert ("--untrained true" in message) if not ckpt_path else ("no checkpoint at" in message)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_untrained_network_predicts_if_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["predict", "--config", "simclr-digits", "--untrained", "true", "--trainer.accelerator", "cpu"])
    assert list(tmp_path.glob("runs/*/*/predictions.npz"))


@pytest.mark.parametrize("command", ["probe", "advise", "compare", "export"])
def test_no_command_takes_abbreviations(command, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shortened = {"probe": "--encode", "advise": "--outpu", "compare": "--outpu", "export": "--ckpt_pat"}[command]
    words = ["x"] if command == "compare" else []
    assert shortened.removeprefix("--") in message_of([command, *words, shortened, "x"], capsys)


SUBSET = "data: {{class_path: datamodules.Subset, init_args: {{base: {{class_path: Digits}}, classes: {}}}}}"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("name: on", "name is True"),
        ("name: 1e3", "name is 1000.0"),
        ("runs: no", "runs is False"),
        (SUBSET.format("[yes, no]"), "classes"),
        ("data: {class_path: datamodules.ImageFolder, init_args: {root: yes}}", "root is True"),
    ],
)
def test_a_word_that_yaml_reads_as_another_value_is_to_be_quoted(text, key, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(text)
    message = message_of([*DIGITS, "--config", "mine.yaml"], capsys)
    assert key in message
    assert "put the text in quotes" in message


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_disk_that_cannot_be_written_to_is_one_line(error, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def full(*_, **__):
        raise OSError(error, os.strerror(error), "runs/some/file")

    monkeypatch.setattr("recipes.cli.command.Command", full)
    assert message_of(DIGITS, capsys) == f"recipes: error: runs/some/file: {os.strerror(error)}"


def test_a_tilde_stands_for_the_home_folder_in_every_option(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    inner = Namespace(class_path="mine.Data", init_args=Namespace(root="~/pictures", name="a~b", files=["~/a", "~"]))
    found = with_homes(Namespace(runs="~/runs", data=inner, epochs=3, near="~5 %"))
    assert (found.runs, found.epochs, found.near) == ("/home/me/runs", 3, "~5 %")
    assert vars(found.data.init_args) == {
        "root": "/home/me/pictures", "name": "a~b", "files": ["/home/me/a", "/home/me"],
    }  # fmt: skip


def test_a_tilde_stands_for_the_home_folder_in_python(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert ImageFolder("~/pictures", cache="~/cache").root == tmp_path / "pictures"
    assert ImageFolder("~/pictures", cache="~/cache").cache_file == tmp_path / "cache"
    assert CIFAR10("~/data").root == tmp_path / "data"
    (tmp_path / "some.ckpt").touch()
    assert checkpoint_path("~/some.ckpt") == tmp_path / "some.ckpt"


def test_a_config_is_found_in_the_home_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("name: [1]")
    assert "name" in message_of(["fit", "--config=~/mine.yaml"], capsys)
