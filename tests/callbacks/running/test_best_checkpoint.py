"""A run that stops by a validation measure is evaluated and used with the weights of its best epoch."""

import json
import math

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

import recipes
from datamodules import Digits, TaskSequence
from recipes.base.checkpoint import checkpoint_path
from recipes.callbacks import BestCheckpoint, Checkpoint
from recipes.cli import main
from recipes.cli.commands.export import export
from recipes.distillation.teacher import teacher_from
from recipes.evaluation.runs import find_runs, read_run
from recipes.nn import ConvNet
from tests.helpers.training import quiet_trainer

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LOSSES = [0.9, 0.5, 0.7, math.nan, 0.6, 0.4, 0.8]  # on the validation images after each epoch


class Scripted(recipes.Supervised):
    """Has given validation losses, and the epoch in its weights."""

    def __init__(self, name="val/loss", sign=1):
        super().__init__(ConvNet((4,)), num_classes=10, scheduler=None)
        self.name, self.sign = name, sign
        self.register_buffer("epoch", torch.tensor(-1))

    def on_train_epoch_start(self):
        self.epoch.fill_(self.current_epoch)

    def validation_step(self, batch, batch_idx):
        self.log(self.name, self.sign * LOSSES[self.current_epoch])
        return self(batch.image)


def fitted(folder, *callbacks, recipe=None, epochs=7, **options):
    best = BestCheckpoint(folder)
    checkpoint = Checkpoint()
    checkpoint.dirpath = str(folder)
    trainer = quiet_trainer(
        max_epochs=epochs, callbacks=[*callbacks, best, checkpoint], enable_checkpointing=True, limit_train_batches=1
    )
    trainer.fit(recipe or Scripted(), datamodule=Digits(size=8), **options)
    return best


def epoch_in(path):
    return int(torch.load(path, weights_only=True)["state_dict"]["epoch"])


def test_the_epoch_with_the_best_value_is_kept_beside_the_last(tmp_path):
    best = fitted(tmp_path, EarlyStopping("val/loss", patience=50, check_finite=False))
    assert best.file == tmp_path / "best.ckpt"
    assert epoch_in(best.file) == 5
    assert epoch_in(tmp_path / "last.ckpt") == 6
    record = json.loads((tmp_path / "best.json").read_text())
    assert (record["epoch"], record["monitor"], record["measures"]) == (5, "val/loss", {"val/loss": pytest.approx(0.4)})


def test_the_largest_value_is_the_best_where_a_checkpoint_callback_says_so(tmp_path):
    newest = ModelCheckpoint(tmp_path / "newest", monitor="step", mode="max")
    own = ModelCheckpoint(tmp_path / "own", monitor="val/score", mode="max")
    best = fitted(
        tmp_path, EarlyStopping("val/score", patience=50, check_finite=False), newest, own, recipe=Scripted("val/score")
    )
    assert epoch_in(best.file) == 0


@pytest.mark.parametrize("callbacks", [(), (EarlyStopping("train/loss"),)])
def test_no_best_checkpoint_where_no_validation_measure_is_monitored(callbacks, tmp_path):
    best = fitted(tmp_path, *callbacks, epochs=2)
    assert best.file is None
    assert not (tmp_path / "best.ckpt").exists()


def test_a_sequence_of_tasks_keeps_its_last_state_alone(tmp_path):
    best = BestCheckpoint(tmp_path)
    trainer = quiet_trainer(callbacks=[EarlyStopping("val/loss"), best], max_epochs=2, limit_train_batches=1)
    sequence = TaskSequence(Digits(size=8), num_tasks=2, batch_size=8)
    trainer.fit(recipes.Supervised(ConvNet((4,)), num_classes=10, scheduler=None), datamodule=sequence)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("epochs", [3, 6])
def test_a_resumed_run_keeps_the_best_epoch_of_the_run_before(epochs, tmp_path):
    def stopping():
        return EarlyStopping("val/loss", patience=50, check_finite=False)

    fitted(tmp_path / "1", stopping(), epochs=epochs)
    best = fitted(tmp_path / "2", stopping(), ckpt_path=tmp_path / "1" / "last.ckpt")
    assert epoch_in(best.file) == 5
    assert json.loads((tmp_path / "2" / "best.json").read_text())["epoch"] == 5


def test_a_resumed_run_without_the_file_of_the_best_epoch_seeks_a_new_one(tmp_path):
    fitted(tmp_path / "1", EarlyStopping("val/loss", patience=50, check_finite=False), epochs=6)
    (tmp_path / "1" / "best.ckpt").unlink()
    again = EarlyStopping("val/loss", patience=50, check_finite=False)
    with pytest.warns(UserWarning, match="is not the best checkpoint of the run that is resumed"):
        best = fitted(tmp_path / "2", again, ckpt_path=tmp_path / "1" / "last.ckpt")
    assert epoch_in(best.file) == 6


def test_a_second_fit_forgets_the_best_value_of_the_first(tmp_path):
    best = BestCheckpoint(tmp_path)
    for losses in (slice(0, 2), slice(2, 4)):
        trainer = quiet_trainer(
            max_epochs=2, limit_train_batches=1, callbacks=[EarlyStopping("val/loss", check_finite=False), best]
        )
        recipe = Scripted()
        recipe.validation_step = lambda batch, _, r=recipe, s=losses: (
            r.log("val/loss", LOSSES[s][r.current_epoch]),
            r(batch.image),
        )[1]
        trainer.fit(recipe, datamodule=Digits(size=8))
    assert json.loads((tmp_path / "best.json").read_text())["value"] == pytest.approx(0.7)


# What the commands take


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the command whose head is spoilt after its second epoch."""
    folder = tmp_path_factory.mktemp("best")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        loss = recipes.Supervised.validation_step

        def worse(self, batch, batch_idx):
            if self.current_epoch > 1 and self.training_is_spoilt:
                with torch.no_grad():
                    self.head.weight.zero_()
            return loss(self, batch, batch_idx)

        patch.setattr(recipes.Supervised, "validation_step", worse)
        patch.setattr(recipes.Supervised, "training_is_spoilt", True, raising=False)
        monitor = {"monitor": "val/accuracy", "mode": "max", "patience": 2}
        stop = json.dumps([{"class_path": "EarlyStopping", "init_args": monitor}])
        args = ["--model", "Supervised", "--model.encoder", "ConvNet", "--model.encoder.widths", "[16]"]
        args += ["--model.scheduler", "null", "--model.lr_batch_size", "null", "--data", "Digits", "--data.size", "8"]
        args += ["--data.batch_size", "64", "--probe.references", "false"]
        args += ["--trainer.callbacks", stop, "--trainer.max_epochs", "9", "--trainer.accelerator", "cpu"]
        main(["fit", *args, "--runs", "runs", "--trainer.enable_progress_bar", "false"])
    (directory,) = folder.glob("runs/*/*")
    return directory


@pytest.mark.slow
def test_every_command_takes_the_best_checkpoint_and_a_resume_the_last(run, tmp_path, monkeypatch):
    directory = run
    monkeypatch.chdir(tmp_path)
    best, last = (directory / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    weight = torch.load(best, weights_only=True)["state_dict"]["head.weight"]
    assert weight.abs().sum() > 0
    assert torch.load(last, weights_only=True)["state_dict"]["head.weight"].abs().sum() != weight.abs().sum()

    assert checkpoint_path(directory) == best
    assert checkpoint_path(directory.parent) == best
    assert checkpoint_path(directory, resume=True) == last
    assert torch.equal(recipes.load(directory).head.weight, weight)
    assert torch.equal(teacher_from(str(directory)).member.head.weight, weight)
    first, taken = recipes.load(best).encoder.state_dict(), ConvNet((16,), weights=str(directory)).state_dict()
    assert all(torch.equal(first[name], taken[name]) for name in first)

    data = Digits(size=8, batch_size=360)
    data.setup()
    images = next(iter(data.in_order(data.splits.test)))
    expected = [
        (recipes.load(file).classify(images.image).argmax(1) == images.label).double().mean() for file in (best, last)
    ]
    assert expected[0] != expected[1]
    accuracy = json.loads((directory / "classes.json").read_text())["accuracy"]
    assert accuracy == pytest.approx(float(expected[0]))
    main(["test", "--ckpt_path", str(directory), "--runs", "again", "--probe.references", "false"])
    (again,) = tmp_path.glob("again/*/*/classes.json")
    assert json.loads(again.read_text())["accuracy"] == accuracy

    record = json.loads((directory / "checkpoints" / "best.json").read_text())
    here, later = (json.loads((each / "evaluation.json").read_text())["protocol"] for each in (directory, again.parent))
    images = (record["epoch"] + 1) * here["training_images_seen"] // here["epochs"]
    measured = {"name": "best.ckpt", "epochs": record["epoch"] + 1, "training_images_seen": images}
    assert here["checkpoint"] == later["checkpoint"] == measured
    assert here["epochs"] > later["epochs"] == record["epoch"] + 1
    assert [run.directory for run in find_runs([directory, again.parent])[0]] == [directory]
    found = read_run(directory)
    assert found.best == "val/accuracy"
    assert found.measures["val/accuracy"] == record["value"]
    folder = export(directory, tmp_path / "export", ["safetensors"])
    assert (folder / "encoder.safetensors").is_file()
