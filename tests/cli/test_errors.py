"""Users' mistakes end with code 2 and one line that says what was given, what is allowed and what to do."""

import subprocess
import sys

import pytest

from recipes.cli import main

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
