"""``recipes fit --ckpt_path``: each option acts, and what changes is printed."""

import csv
import re
from pathlib import Path

import pytest
import torch
import wandb
import yaml
from PIL import Image

from recipes.base.checkpoint import checkpoint_path
from recipes.cli import main

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning")]

SHORT = {
    "model.encoder.widths": "[4]",
    "data.size": 8,
    "data.batch_size": 600,
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 1,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 0,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.callbacks": "EarlyStopping",
    "trainer.callbacks.monitor": "val/loss",
    "trainer.callbacks.min_delta": 100,
    "trainer.callbacks.patience": 1,
    "trainer.logger": "WandbLogger",
    "trainer.logger.offline": "true",
}


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("first"))
        return fit(patch, config="supervised-digits", **SHORT)


def fit(patch, **options):
    """Runs in a new folder, and returns the run's directory."""
    patch.setattr("recipes.callbacks.Pictures.on_fit_end", lambda *_: None)
    options = {"runs": Path.cwd() / "runs", **options}  # wandb's process has the folder in which it was started
    main(["fit", *(f"--{name}={value}" for name, value in options.items())])
    wandb.finish()
    (directory,) = Path.cwd().glob("runs/*/*")
    return directory


def content(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def told(monkeypatch):
    """The lines that are logged."""
    lines = []
    monkeypatch.setattr("recipes.cli.training.rank_zero_info", lines.append)
    return lines


@pytest.fixture
def resumed(first, tmp_path, monkeypatch, told):
    monkeypatch.chdir(tmp_path)
    changed = {
        "model.optimizer.lr": 1e-6,
        "model.optimizer.weight_decay": 0.5,
        "trainer.callbacks.patience": 50,
        "trainer.max_epochs": 5,
        "data.batch_size": 300,
    }
    return fit(monkeypatch, ckpt_path=first, **changed)


def test_a_resumed_run_obeys_its_options_and_prints_what_changed(first, resumed, told):
    line, place, checkpoint = told
    runs = first.parent.parent
    assert place == f"the resumed run continues in {resumed}; to keep it beside its first part, add --runs {runs}"
    assert re.search("best.ckpt is taken: it has the best val/loss of the run, .* after epoch 1$", checkpoint)
    begin, _, changed = line.partition(": ")
    assert begin == "changed by this resume"
    assert set(changed.split(", ")) == {
        "data.batch_size (600 → 300)",
        "model.optimizer.lr (0.002 → 1e-06)",
        "model.optimizer.weight_decay (0.01 → 0.5)",
        "trainer.callbacks.patience (1 → 50)",
        "trainer.max_epochs (1 → 5)",
    }
    groups = content(resumed)["optimizer_states"][0]["param_groups"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-6, 0.5), (1e-6, 0.0)]
    assert content(resumed)["epoch"] == 4  # with a patience of 1 the run would have ended after epoch 2
    (stopping,) = (state for name, state in content(resumed)["callbacks"].items() if "EarlyStopping" in name)
    assert stopping["patience"] == 50
    rows = list(csv.DictReader((resumed / "metrics.csv").open()))
    assert max(int(row["step"]) for row in rows if row["step"]) == 2 + 4 * 4 - 1

    # Weights & Biases: the same run, in a directory of its own
    def files(run):
        return [path.name for path in run.rglob("*.wandb")]

    assert files(resumed) == [f"run-{content(first)['wandb_ids'][0]}.wandb"]
    assert yaml.safe_load((resumed / "config.yaml").read_text())["trainer"]["logger"]["init_args"]["save_dir"] == "."


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model.encoder.widths": "[8]"}, "model.encoder.widths ([4] → [8]) cannot change on a resume: "),
        (
            {"data": "ImageFolder", "data.root": "pictures", "data.image_size": 8, "data.channels": 1},
            "data (Digits → ImageFolder) cannot change on a resume: the checkpoint knows 10 classes",
        ),
    ],
)
def test_what_cannot_change_on_a_resume_is_refused_by_name(first, tmp_path, monkeypatch, capsys, changed, named):
    for name in "abcdefghij":
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            Image.new("L", (8, 8), number * 40).save(tmp_path / "pictures" / name / f"{number}.png")
    monkeypatch.chdir(tmp_path)
    options = {**changed, "data.batch_size": 4, "trainer.max_epochs": 2, "trainer.logger": "true"}
    with pytest.raises(SystemExit) as ended:
        fit(monkeypatch, ckpt_path=first, **options)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "damage",
    [{"pytorch-lightning_version": "abc"}, {"options": [1]}, {"loops": {"fit_loop": 1}}, {"wandb_ids": 7}],
    ids=lambda damage: next(iter(damage)),
)
def test_a_damaged_field_of_a_checkpoint_is_one_line(first, damage, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = torch.load(checkpoint_path(first), weights_only=True)
    torch.save(content | damage, tmp_path / "damaged.ckpt")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--ckpt_path", "damaged.ckpt", "--trainer.max_epochs", "3"])
    assert stopped.value.code == 2
    assert "damaged.ckpt is damaged" in capsys.readouterr().err.splitlines()[-1]
