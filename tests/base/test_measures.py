"""No number where there are no labels: for every recipe, in the command and in Python."""

import csv
import math
import re

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

import recipes
from datamodules import Batch, ImageFolder
from recipes.base.measures import CrossEntropy, LabelledMetric, accuracy
from recipes.callbacks import RepresentationProbe
from recipes.cli import main
from recipes.nn import ConvNet
from tests.base.two_processes import measure
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer
from tests.system.exactness import RECIPES, packaged

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

NEED_LABELS = re.compile("accuracy|loss|knn|linear|calibration")


def fill(root, *folders, count=4, size=16):
    """Random grey pictures in some folders."""
    draw = np.random.RandomState(len(folders))
    for folder in folders:
        (root / folder).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(draw.randint(0, 256, (size, size)).astype(np.uint8)).save(root / folder / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def half_labelled(tmp_path_factory):
    """Ten labelled classes to train on; flat folders to validate and test on."""
    root = tmp_path_factory.mktemp("pictures")
    return fill(root, *(f"train/{digit}" for digit in range(10)), "val", "test")


def classifier():
    return recipes.Supervised(ConvNet(in_channels=1, widths=[4]), 10, scheduler=None, lr_batch_size=None)


def folder(root, **options):
    return ImageFolder(root, **{"image_size": 8, "channels": 1, "batch_size": 8, **options})


# The metric


def test_metrics_over_labelled_images_are_those_of_a_slow_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(-1, 4, (60,), generator=generator)
    label[20:30] = -1  # a batch without any
    loss, right = LabelledMetric("val/loss", CrossEntropy()), accuracy("val/accuracy")
    loss.metric.set_dtype(torch.float64)
    for rows in torch.arange(60).split(10):
        loss(logits[rows], label[rows])
        right(logits[rows], label[rows])
    known = [i for i in range(60) if label[i] >= 0]
    slow = [-float(logits[i, label[i]] - logits[i].exp().sum().log()) for i in known]
    assert math.isclose(loss.compute().item(), sum(slow) / len(slow), rel_tol=1e-12)
    assert right.compute().item() == pytest.approx(sum(int(logits[i].argmax() == label[i]) for i in known) / len(known))


@pytest.mark.parametrize("kind", ["cross-entropy", MulticlassAccuracy, MulticlassCalibrationError])
def test_a_metric_has_no_value_without_labels_and_after_a_reset(kind):
    metric = LabelledMetric("val/x", CrossEntropy() if kind == "cross-entropy" else kind(4, ignore_index=-1))
    metric(torch.randn(3, 4), torch.tensor([-1, -1, -1]))
    assert metric.compute() is None
    metric(torch.randn(3, 4), torch.tensor([0, -1, 3]))
    assert metric.compute().isfinite()
    metric.reset()
    assert metric.compute() is None


def test_a_loss_that_is_not_finite_is_shown():
    metric = LabelledMetric("val/loss", CrossEntropy())
    metric(torch.full((1, 2), math.nan), torch.tensor([0]))
    assert metric.compute().isnan()


# Every recipe


def data_of(config, root):
    """The options that have a packaged config read the pictures."""
    data = packaged(config)["data"]
    wrapped = "base" in data.get("init_args", {})
    images = data["init_args"]["base"] if wrapped else data
    size = images.get("init_args", {}).get("size", 16)
    args = [f"--data{'.base' * wrapped}", "ImageFolder"]
    place = f"--data{'.base' * wrapped}"
    args += [f"{place}.root", root, f"{place}.channels", 1, f"{place}.image_size", size]
    if data["class_path"].endswith("SemiSupervised"):
        args += ["--data.labels_per_class", 1, "--data.labelled_per_batch", 4]
    return [str(arg) for arg in [*args, "--data.batch_size", 8]]


@pytest.mark.slow
@pytest.mark.parametrize("config", RECIPES)
def test_no_recipe_gives_a_number_where_there_are_no_labels(config, half_labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.max_steps", 2, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    options += ["--trainer.check_val_every_n_epoch", 1, "--trainer.log_every_n_steps", 1]
    images = data_of(config, half_labelled)
    model = packaged(config)["model"]
    if "teacher" in model["init_args"]:
        main(["fit", "--config", "supervised-digits", "--runs", "teachers", *images, *map(str, options)])
        options += ["--model.teacher", "teachers/supervised-digits"]
    capsys.readouterr()
    main(["fit", "--config", config, *images, *map(str, options)])
    out = capsys.readouterr().out
    (directory,) = tmp_path.glob("runs/*/*/")
    rows = list(csv.DictReader((directory / "metrics.csv").open()))
    measured = {name: value for row in rows for name, value in row.items() if value and not name.startswith("train/")}
    assert not [name for name in measured if NEED_LABELS.search(name)]
    assert all(math.isfinite(float(value)) for value in measured.values())
    assert not re.search(r"^test/\S*(accuracy|knn|linear|calibration)", out, re.MULTILINE)
    assert not (directory / "evaluation.json").exists()
    assert not (directory / "classes.json").exists()


def test_every_metric_of_a_recipe_that_takes_labels_is_over_labelled_images():
    model = classifier()
    inside = {id(part) for module in model.modules() if isinstance(module, LabelledMetric) for part in module.modules()}
    assert [module for module in model.modules() if isinstance(module, Metric) and id(module) not in inside] == []


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [True, False])
def test_labels_on_one_device_alone_count_as_on_a_single_device(labelled):
    (one,), two = run(measure, 1, labelled), run(measure, 2, labelled, processes=2)
    names = {f"{split}/{name}" for split in ("val", "test") for name in ("accuracy", "student_accuracy")} | {"val/loss"}
    assert set(one) == (names if labelled else set())
    for each in two:
        assert each == pytest.approx(one, rel=1e-5)


# What the user is told


def test_the_user_is_told_before_training_what_is_not_measured(half_labelled, tmp_path, caplog):
    caplog.set_level("INFO", "lightning.pytorch")
    probe = RepresentationProbe()
    trainer = quiet_trainer(max_steps=1, callbacks=[probe], default_root_dir=tmp_path)
    trainer.fit(classifier(), datamodule=folder(half_labelled))
    told = [record.getMessage() for record in caplog.records if "has a label" in record.getMessage()]
    assert told == [
        "none of the 4 validation images has a label: val/loss, val/accuracy, val/knn, val/linear are not measured",
        "none of the 4 test images has a label: test/accuracy, test/knn, test/linear are not measured",
    ]


def test_a_test_without_labels_gives_no_number(half_labelled, tmp_path):
    trainer = quiet_trainer(default_root_dir=tmp_path)
    assert trainer.test(classifier(), datamodule=folder(half_labelled), verbose=False) == [{}]
    assert trainer.validate(classifier(), datamodule=folder(half_labelled), verbose=False) == [{}]


def test_labels_are_enough_in_some_batches_of_a_plain_loader():
    image, label = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8), torch.tensor([-1] * 8 + [1, -1, 2, 3])
    batches = [Batch(*rows) for rows in zip(image.split(4), label.split(4), torch.arange(12).split(4), strict=True)]
    model = classifier()
    (metrics,) = quiet_trainer().validate(model, DataLoader(batches, batch_size=None), verbose=False)
    with torch.no_grad():
        logits = model.eval().classify(image)
    assert math.isclose(metrics["val/loss"], F.cross_entropy(logits[label >= 0], label[label >= 0]), rel_tol=1e-5)
    (metrics,) = quiet_trainer().validate(model, DataLoader(batches[:2], batch_size=None), verbose=False)
    assert metrics == {}


@pytest.mark.parametrize("monitor", ["val/loss", "val/accuracy", "val/knn"])
@pytest.mark.parametrize("callback", [EarlyStopping, ModelCheckpoint])
def test_a_callback_that_monitors_a_measure_without_labels_is_refused(callback, monitor, half_labelled, tmp_path):
    callbacks = [callback(monitor=monitor), RepresentationProbe()]
    trainer = quiet_trainer(callbacks=callbacks, max_steps=1, enable_checkpointing=True, default_root_dir=tmp_path)
    message = f"{callback.__name__} monitors {monitor}, which is not measured in this run: none of the validation"
    with pytest.raises(ValueError, match=message):
        trainer.fit(classifier(), datamodule=folder(half_labelled))
    assert trainer.global_step == 0


def test_a_callback_may_monitor_a_measure_that_needs_no_labels(half_labelled, tmp_path):
    callbacks = [EarlyStopping(monitor="val/effective_rank"), recipes.callbacks.CollapseMonitor()]
    trainer = quiet_trainer(callbacks=callbacks, max_epochs=1, default_root_dir=tmp_path)
    trainer.fit(classifier(), datamodule=folder(half_labelled))
    assert trainer.global_step == 5


@pytest.mark.parametrize(
    ("options", "trainer_options", "reason"),
    [
        ({"val_fraction": 0.0}, {}, "there are no validation images"),
        ({"val_fraction": 0.3}, {"limit_val_batches": 0}, "trainer.limit_val_batches is 0"),
    ],
)
def test_a_callback_that_monitors_a_validation_that_is_not_done_is_refused(options, trainer_options, reason, tmp_path):
    fill(tmp_path / "pictures", *(f"train/{digit}" for digit in range(10)))
    trainer = quiet_trainer(max_steps=1, callbacks=[EarlyStopping("val/loss")], **trainer_options)
    with pytest.raises(ValueError, match=f"EarlyStopping monitors val/loss, .*{reason}"):
        trainer.fit(classifier(), datamodule=folder(tmp_path / "pictures", **options))


@pytest.mark.parametrize("monitor", ["val/loss", "val/acuracy"])
def test_a_callback_that_monitors_what_nothing_measures_is_refused(monitor, tmp_path):
    fill(tmp_path / "pictures", *(f"train/{digit}" for digit in range(10)))
    callbacks = [EarlyStopping(monitor), recipes.callbacks.CollapseMonitor()]
    model = recipes.SimCLR(ConvNet(in_channels=1, widths=[4]))
    known = "val/feature_std, val/effective_rank"
    with pytest.raises(
        ValueError, match=f"EarlyStopping monitors {monitor}, .*on validation images, it measures {known}"
    ):
        quiet_trainer(max_steps=1, callbacks=callbacks).fit(
            model, datamodule=folder(tmp_path / "pictures", val_fraction=0.4)
        )


def test_a_callback_may_monitor_what_a_class_of_the_user_measures(tmp_path):
    class Own(recipes.SimCLR):
        def validation_step(self, batch, batch_idx):
            self.log("val/own", 1.0)
            return super().validation_step(batch, batch_idx)

    fill(tmp_path / "pictures", *(f"train/{digit}" for digit in range(10)))
    trainer = quiet_trainer(max_epochs=1, callbacks=[EarlyStopping("val/own")])
    trainer.fit(Own(ConvNet(in_channels=1, widths=[4])), datamodule=folder(tmp_path / "pictures", val_fraction=0.4))
    assert trainer.global_step > 0


def test_a_schedule_that_monitors_a_measure_without_labels_is_refused(half_labelled):
    from lightning.pytorch.cli import ReduceLROnPlateau

    model = classifier()
    model.scheduler = lambda optimizer: ReduceLROnPlateau(optimizer, monitor="val/loss")
    with pytest.raises(ValueError, match="ReduceLROnPlateau monitors val/loss, which is not measured"):
        quiet_trainer(max_steps=1).fit(model, datamodule=folder(half_labelled))


def test_the_command_refuses_in_one_line(half_labelled, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stopping = '{"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss"}}'
    args = ["--config", "supervised-digits", *data_of("supervised-digits", half_labelled)]
    with pytest.raises(SystemExit):
        main(["fit", *args, "--trainer.callbacks", f"[{stopping}]", "--trainer.accelerator", "cpu"])
    error = capsys.readouterr().err
    assert error.count("recipes: error: EarlyStopping monitors val/loss, which is not measured in this run") == 1
    assert "Traceback" not in error
