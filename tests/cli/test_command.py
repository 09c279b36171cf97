"""What the command leaves behind, and which value wins."""

import csv
import inspect
import json
import os
import time
import warnings
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import recipes
from recipes.cli import main
from recipes.cli.catalogue import config_file, config_names, data_names, recipe_names
from recipes.cli.run_directory import RUN_DIRECTORY, new_directory
from tests.helpers.drawing import draw_nothing
from tests.helpers.processes import run as run_in

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

SHORT = ["--trainer.max_epochs", "2", "--trainer.check_val_every_n_epoch", "1", "--trainer.accelerator", "cpu"]
SMALL = ["--model.encoder.widths", "[4,8]", "--data.batch_size", "512", "--probe.draws", "2", *SHORT]


def fit(folder, *args):
    """Runs in a folder and returns the run's directory."""
    before = set(folder.glob("runs/*/*"))
    os.chdir(folder)
    main(["fit", *args])
    (directory,) = set(folder.glob("runs/*/*")) - before
    return directory


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    draw_nothing(left_out=False)
    return fit(tmp_path_factory.mktemp("run"), "--config", "simclr-digits", *SMALL)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def checkpoint(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_a_run_leaves_config_metrics_evaluation_checkpoint_and_pictures(run):
    assert run.parent.name == "simclr-digits"
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    pictures = {f"pictures/{name}.png" for name in ("views", "tsne", "loss", "neighbours")}
    assert found == {"config.yaml", "metrics.csv", "evaluation.json", "checkpoints/last.ckpt"} | pictures


def fit_on_two_devices(folder):
    os.chdir(folder)
    main(["fit", "--config", "simclr-digits", *SMALL, "--trainer.max_epochs", "1", "--trainer.devices", "2"])
    return [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]


def test_no_thread_is_left_that_could_abort_the_process_at_its_end(tmp_path):
    """Gloo's do, now and then, after all work is done: exit code -6."""
    for threads in run_in(fit_on_two_devices, tmp_path, processes=2):
        assert threads
        assert not [name for name in threads if "gloo" in name]


def test_the_last_epoch_is_saved_also_where_it_is_not_validated(tmp_path):
    run = fit(tmp_path, "--config", "simclr-digits", *SMALL, "--trainer.check_val_every_n_epoch", "5")
    assert checkpoint(run)["epoch"] == 1


def test_the_last_step_is_saved_also_where_it_is_not_due(tmp_path):
    run = fit(tmp_path, "--config", "simclr-digits", *SMALL, "--checkpoint.every_n_train_steps", "3")
    assert checkpoint(run)["global_step"] == 4
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["last.ckpt"]


def test_metrics_csv_has_training_validation_and_test(run):
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    seen = {name for row in rows for name, value in row.items() if value}
    assert {"train/loss", "val/knn", "val/linear", "val/effective_rank", "test/knn", "test/random_encoder/knn"} <= seen


def test_evaluation_compares_trained_random_and_pixels_with_one_five_and_all_labels(run):
    accuracy = json.loads((run / "evaluation.json").read_text())["accuracy"]
    assert set(accuracy) == {"trained_encoder", "random_encoder", "raw_pixels"}
    columns = {f"{probe}{few}" for probe in ("knn", "linear") for few in ("_1_per_class", "_5_per_class", "")}
    assert all(set(row) == columns for row in accuracy.values())


def test_a_saved_config_runs_again_and_gives_the_same_weights(run, tmp_path):
    again = fit(tmp_path, "--config", str(run / "config.yaml"))
    torch.testing.assert_close(checkpoint(again)["state_dict"], checkpoint(run)["state_dict"], rtol=0, atol=0)


def test_a_checkpoint_holds_no_pickled_objects_and_its_own_config(run):
    held = checkpoint(run)  # weights_only=True refuses anything but tensors and plain values
    assert held["recipe"] == "SimCLR"
    assert yaml.safe_load(held["config"]) == yaml.safe_load((run / "config.yaml").read_text())


def test_a_run_is_tested_by_its_directory_alone(run, tmp_path, capsys):
    main(["test", "--ckpt_path", str(run)])
    (tested,) = tmp_path.glob("runs/*/*")
    accuracy = [json.loads((where / "evaluation.json").read_text())["accuracy"] for where in (run, tested)]
    assert accuracy[0] == accuracy[1]
    assert "trained encoder" in capsys.readouterr().out


def test_the_command_line_beats_the_checkpoint(run, tmp_path):
    resumed = fit(tmp_path, "--ckpt_path", str(run), "--trainer.max_epochs", "3", "--model.temperature", "0.7")
    config = yaml.safe_load((resumed / "config.yaml").read_text())
    assert config["model"]["init_args"]["temperature"] == 0.7
    assert config["data"]["init_args"]["batch_size"] == 512  # the checkpoint's own
    assert checkpoint(resumed)["epoch"] == 2


@pytest.mark.parametrize("command", ["test", "predict", "validate"])
def test_only_the_command_line_lets_weights_pass_that_are_not_finite(command, run, tmp_path, capsys):
    saved = checkpoint(run)
    config = yaml.safe_load(saved["config"])
    config["health"]["on_nonfinite"] = "ignore"  # as a training that diverged may have been asked to
    saved["config"] = yaml.safe_dump(config)
    next(value for name, value in saved["state_dict"].items() if name.startswith("encoder.")).fill_(torch.nan)
    torch.save(saved, tmp_path / "nan.ckpt")
    args = [command, "--ckpt_path", str(tmp_path / "nan.ckpt"), "--runs", str(tmp_path / "runs")]
    with pytest.raises(SystemExit) as end:
        main(args)
    assert end.value.code == 2
    assert "not finite (encoder" in capsys.readouterr().err
    main([*args, "--health.on_nonfinite", "ignore", f"--trainer.limit_{command.replace('idate', '')}_batches", "0"])


def test_the_command_line_beats_the_file(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["encoder"]["init_args"]["widths"] == [4, 8]
    packaged = yaml.safe_load(config_file("simclr-digits").read_text())
    assert config["model"]["init_args"]["temperature"] == packaged["model"]["init_args"]["temperature"]


def test_a_compiled_encoder_trains_alike_and_its_checkpoint_has_the_same_names(run, tmp_path):
    """With a backend that takes no time to compile."""
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    compiled = fit(tmp_path, "--config", "simclr-digits", *SMALL, "--compile", "aot_eager")
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before + 1  # and not one more for evaluation
    expected, weights = (checkpoint(directory)["state_dict"] for directory in (run, compiled))
    assert list(weights) == list(expected)
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)


def test_predict_writes_features_with_their_indices(run, tmp_path):
    main(["predict", "--ckpt_path", str(run)])
    (path,) = tmp_path.glob("runs/*/*/predictions.npz")
    with np.load(path) as predictions:
        assert predictions["index"].tolist() == list(range(360))
        assert predictions["feature"].shape == (360, 8)
        assert set(predictions["label"]) == set(range(10))


def test_predicted_features_are_those_of_the_loaded_recipe(run, tmp_path):
    from datamodules import Digits

    main(["predict", "--ckpt_path", str(run)])
    (path,) = tmp_path.glob("runs/*/*/predictions.npz")
    recipe, data = recipes.load(run), Digits(batch_size=360)
    data.setup()
    (batch,) = data.test_dataloader()
    with torch.no_grad(), np.load(path) as predictions:
        torch.testing.assert_close(recipe(batch.image), torch.from_numpy(predictions["feature"]))


def test_supervised_needs_no_number_of_classes_and_is_loaded_with_it(tmp_path, capsys):
    run = fit(tmp_path, "--config", "supervised-digits", *SMALL)
    assert recipes.load(run).head.out_features == 10
    assert "test/accuracy" in capsys.readouterr().out


def test_a_trained_run_does_not_need_the_weights_that_it_started_from(run, tmp_path, capsys):
    weights = tmp_path / "weights.ckpt"
    weights.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    args = ["--config", "finetune-digits", *SMALL, "--model.encoder.weights", str(weights)]
    tuned = fit(tmp_path, *args, "--report.mistakes", "0")
    weights.unlink()
    image = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    assert recipes.load(tuned)(image).shape == (1, 8)
    capsys.readouterr()
    main(["test", "--ckpt_path", str(tuned)])
    assert "test/accuracy" in capsys.readouterr().out


def test_two_runs_in_the_same_second_get_directories_of_their_own(tmp_path, monkeypatch):
    class Frozen(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr("recipes.cli.run_directory.datetime", Frozen)
    args = ["--config", "supervised-digits", "--trainer.fast_dev_run", "1"]
    assert [fit(tmp_path, *args).name for _ in range(2)] == ["2026-01-02_03-04-05", "2026-01-02_03-04-05_2"]


def fit_as_torchrun_starts_it(folder):
    time.sleep(1.1 * torch.distributed.get_rank())  # so that each process has a second of its own
    os.chdir(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(["fit", "--config", "simclr-digits", *SMALL, "--trainer.devices", "2", "--trainer.strategy", "ddp"])
    return [str(warning.message) for warning in caught]


def test_processes_that_torchrun_starts_share_a_directory_and_their_batch_norm(tmp_path, monkeypatch):
    monkeypatch.delenv(RUN_DIRECTORY, raising=False)  # left by a run in this process
    messages = run_in(fit_as_torchrun_starts_it, tmp_path, processes=2)
    (directory,) = tmp_path.glob("runs/*/*")
    assert {path.name for path in directory.iterdir()} == {
        *("config.yaml", "metrics.csv", "evaluation.json", "checkpoints", "pictures")
    }
    assert checkpoint(directory)["global_step"] == 4
    assert not [message for message in sum(messages, []) if "batch norm" in message]


def test_the_first_process_of_torchrun_makes_a_directory_for_each_of_its_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv(RUN_DIRECTORY, str(tmp_path / "of-an-earlier-run"))
    first, second = new_directory(tmp_path), new_directory(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {first.name, second.name}
    assert first != second


@pytest.mark.parametrize(
    "option", ["--trainer.sync_batchnorm=true", "--trainer.plugins=recipes.nn.CrossDeviceBatchNorm"]
)
def test_a_choice_of_batch_norm_is_left_alone(option):
    main(["fit", "--config", "supervised-digits", "--trainer.fast_dev_run", "1", option])


@pytest.mark.draws
def test_wandb_is_one_flag_and_its_files_are_in_the_run_directory_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    for _ in range(2):  # Lightning's own way of saving the config fails in the second run
        run = fit(tmp_path, "--config", "simclr-digits", *SMALL, "--trainer.logger", "WandbLogger")
        assert (run / "metrics.csv").exists()
        assert (run / "wandb").is_dir()
        import wandb

        assert wandb.run.config["model"]["class_path"] == "recipes.SimCLR"
        wandb.finish()


def test_fast_dev_run_of_a_config_needs_nothing_else(tmp_path):
    main(["fit", "--config", "simclr-digits", "--trainer.fast_dev_run", "1"])


@pytest.mark.parametrize("name", [name for name in recipe_names() if name != "SVM"])
def test_a_recipe_that_is_named_alone_has_the_schedule_of_its_signature(name, capsys):
    scheduler = inspect.signature(getattr(recipes, name).__init__).parameters["scheduler"].default
    with pytest.raises(SystemExit):
        main(["fit", "--model", name, "--model.encoder", "ConvNet", "--print_config"])
    said = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["scheduler"]
    if scheduler is None:
        assert said is None
        return
    expected = scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0))
    assert said["class_path"] == f"recipes.optim.{type(expected).__name__}"
    assert said["init_args"]["warmup_epochs"] == expected.warmup_epochs


def test_list_names_everything_there_is(capsys):
    main(["list"])
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in [*recipe_names(), *data_names(), *config_names()])


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_shows_the_commands(args, capsys):
    main(args)
    printed = capsys.readouterr().out
    assert all(f"  {command} " in printed for command in ("fit", "validate", "test", "predict", "list"))


@pytest.mark.parametrize("args", [["fit", "--model.help", "SimCLR"], ["fit", "--model", "SimCLR", "--help"]])
def test_help_of_a_recipe_shows_each_argument_with_its_docstring(args, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(args)
    assert stopped.value.code == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "--model.temperature" in printed
    assert "softmax temperature for the similarities" in printed
    assert "the learning rate is constant" in printed  # the text of Recipe, for an argument that SimCLR takes again


def test_a_checkpoint_of_another_recipe_ends_with_code_2_and_names_both(run, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["test", "--config", "supervised-digits", "--ckpt_path", str(run)])
    assert stopped.value.code == 2
    assert "is of the recipe SimCLR, this run is Supervised" in capsys.readouterr().err


def test_loading_a_file_that_is_no_checkpoint_says_so(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match="holds no configuration"):
        recipes.load(tmp_path / "other.ckpt")
