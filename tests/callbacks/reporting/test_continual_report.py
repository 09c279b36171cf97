"""The report of a continual run says what the matrices and the costs are."""

import json
import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from matplotlib.text import Text
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from datamodules import ImageDataModule, ImagesInMemory, TaskBatch, Tasks, TaskSequence
from datamodules.base import Splits
from recipes import FineTuning, LwF, Supervised
from recipes.callbacks import CompileEncoder, ContinualReport
from recipes.callbacks.reporting import continual_report
from recipes.evaluation.continual import MEASURES
from recipes.nn import MLP
from recipes.plots.continual import table
from tests.helpers.processes import run

NAMES = ("ant", "bee", "cat", "dog", "elk", "fox")
HIDDEN = 5
LWF = partial(LwF, warmup_epochs=0)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Animals(ImageDataModule):
    """Images of 3 × 3 pixels, twelve of each of six classes to train on, and five to measure on."""

    def __init__(self, test: bool = True) -> None:
        super().__init__(batch_size=4)
        self.test = test

    num_classes = len(NAMES)  # type: ignore[assignment]

    def load(self) -> Splits:
        generator = torch.Generator().manual_seed(0)
        splits = []
        for each in (12, 5, 5):
            label = torch.arange(6).repeat_interleave(each)
            image = torch.randint(0, 120, (len(label), 1, 3, 3), generator=generator) + 20 * label.view(-1, 1, 1, 1)
            splits.append(ImagesInMemory(image.to(torch.uint8), label))
        train, val, test = splits
        return Splits(NAMES, train, val, test if self.test else None)


def sequence(scenario: Any = "class", test: bool = True, batch_size: int = 8, epochs: Any = (2, 1, 2)) -> TaskSequence:
    data = Animals(test)
    return TaskSequence(data, scenario=scenario, num_tasks=3, epochs_per_task=epochs, batch_size=batch_size)


def recipe(kind: Any = FineTuning, scenario: Any = "class", **options: Any) -> Any:
    seed_everything(3, verbose=False)
    tasks = Tasks((2, 2, 2), scenario)
    return kind(MLP(3, hidden=(HIDDEN,), batch_norm=False), tasks, **options)


def trainer(path: Path, *callbacks: Callback, **options: Any) -> Trainer:
    options = {"max_epochs": -1, "logger": False, "enable_checkpointing": False, **options}
    return Trainer(
        accelerator="cpu", callbacks=list(callbacks), default_root_dir=path, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **options,
    )  # fmt: skip


def report_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "continual.json").read_text())


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The figures, by the names of their files, none of which is written: that takes long."""
    figures: dict[str, Any] = {}
    monkeypatch.setattr(continual_report, "save", lambda figure, path, trainer: figures.update({path.name: figure}))
    return figures


def test_the_file_has_the_matrices_the_measures_and_the_protocol(tmp_path: Path, drawn: dict[str, Any]) -> None:
    model, data = recipe(LWF), sequence()
    trainer(tmp_path, ContinualReport()).fit(model, datamodule=data)
    report = report_of(tmp_path)
    for view, matrix in model.accuracy_matrix.compute().items():
        assert report["matrix"][view] == matrix.tolist()
        expected = {name: measure(matrix) for name, measure in MEASURES.items()}
        if view == "agnostic":  # no class of a later task is predicted
            assert expected["forward_transfer"] == -matrix[0, 1:].mean()
            expected["forward_transfer"] = None
        assert report["measures"][view] == expected
    assert (report["recipe"], report["encoder"], report["data"]) == ("LwF", "MLP", "Animals")
    assert (report["scenario"], report["view"], report["tasks_learned"]) == ("class", "agnostic", 3)
    assert report["tasks"] == [["ant", "bee"], ["cat", "dog"], ["elk", "fox"]]
    assert report["expectation"] == model.expectation
    protocol = report["protocol"]
    assert (protocol["split"], protocol["seed"]) == ("test", int(os.environ["PL_GLOBAL_SEED"]))
    assert (protocol["epochs_per_task"], protocol["batch_size"], protocol["devices"]) == ([2, 1, 2], 8, 1)
    assert protocol["training_images_seen"] == 5 * 24
    assert protocol["training_minutes"] == pytest.approx(sum(report["cost"]["seconds"]) / 60, abs=0.006)
    assert report["versions"]["torch"] == torch.__version__
    assert set(drawn) == {"accuracy-matrix.png", "accuracy-over-tasks.png", "forgetting.png"}


def test_without_test_images_the_report_says_that_validation_images_were_measured(tmp_path: Path) -> None:
    trainer(tmp_path, ContinualReport()).fit(recipe(), datamodule=sequence(test=False))
    report = report_of(tmp_path)
    assert report["protocol"]["split"] == "val"
    assert "validation images" in str(table(report).caption)


def forward(classes: int) -> int:
    """Operations of the network for one image: an addition and a multiplication for each weight."""
    return 2 * (9 * HIDDEN + HIDDEN * classes)


def backward(classes: int) -> int:
    """Of the gradients for weights and inputs; images need none."""
    return 2 * (9 * HIDDEN + 2 * HIDDEN * classes)


@pytest.mark.parametrize("kind", [FineTuning, LWF, LwF])
def test_operations_per_image_are_those_counted_by_hand(kind: Any, tmp_path: Path) -> None:
    trainer(tmp_path, ContinualReport()).fit(recipe(kind), datamodule=sequence(epochs=2))
    plain = forward(6) + backward(6)
    # From the second task on, the old network answers too; not so in a warm-up, which is not the last epoch.
    old = 0 if kind is FineTuning else forward(6)
    assert report_of(tmp_path)["cost"]["flops_per_image"] == [plain, plain + old, plain + old]


def test_counting_changes_no_weight(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [ContinualReport()]):
        model = recipe(LWF)
        trainer(tmp_path, *callbacks).fit(model, datamodule=sequence())
        weights.append(model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(weights[0][name].equal(value) for name, value in weights[1].items())


def test_of_a_compiled_encoder_the_operations_are_not_known(tmp_path: Path) -> None:
    trainer(tmp_path, CompileEncoder("eager"), ContinualReport()).fit(recipe(), datamodule=sequence())
    assert report_of(tmp_path)["cost"]["flops_per_image"] == [None, None, None]


class Failing(FineTuning):
    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        if self.current_epoch == 1:  # the last of the first task, where operations are counted
            raise RuntimeError("stop")
        return super().training_step(batch, batch_idx)


def test_a_step_that_fails_leaves_no_counter_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="stop"):
        trainer(tmp_path, ContinualReport()).fit(recipe(Failing), datamodule=sequence())
    assert _get_current_dispatch_mode() is None


class Timed(FineTuning):
    """Every part takes a time of its own."""

    now = 0.0

    def begin_task(self) -> None:
        Timed.now += 10

    def end_task(self) -> None:
        Timed.now += 20

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        Timed.now += 1
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        Timed.now += 1000
        return super().validation_step(batch, batch_idx)

    def _measure(self, row: int) -> None:
        before = self.measuring_seconds
        super()._measure(row)
        Timed.now += 10000
        self.measuring_seconds = before + 10000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Timed, "now", 0.0)
    monkeypatch.setattr(continual_report, "time", SimpleNamespace(perf_counter=lambda: Timed.now))


def test_the_time_of_a_task_is_that_of_its_steps_beginning_and_end_without_measuring(
    tmp_path: Path, clock: None
) -> None:
    trainer(tmp_path, ContinualReport()).fit(recipe(Timed), datamodule=sequence())
    # three batches an epoch
    assert report_of(tmp_path)["cost"]["seconds"] == [10 + 6 + 20, 10 + 3 + 20, 10 + 6 + 20]


class StopAfter(Callback):
    """Ends the run in the middle of an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            raise RuntimeError("killed")


def test_a_run_that_goes_on_in_the_middle_of_a_task_reports_the_whole_cost(tmp_path: Path, clock: None) -> None:
    trainer(tmp_path / "whole", ContinualReport()).fit(recipe(Timed), datamodule=sequence())
    saved = tmp_path / "saved.ckpt"
    stopping = trainer(tmp_path / "stopped", ContinualReport(), StopAfter(step=10, path=saved))
    with pytest.raises(RuntimeError, match="killed"):
        stopping.fit(recipe(Timed), datamodule=sequence())
    seed_everything(9, verbose=False)
    resumed = trainer(tmp_path / "resumed", ContinualReport())
    resumed.fit(recipe(Timed), datamodule=sequence(), ckpt_path=saved, weights_only=True)
    whole, found = report_of(tmp_path / "whole"), report_of(tmp_path / "resumed")
    assert found["matrix"] == whole["matrix"]
    assert found["cost"]["flops_per_image"] == whole["cost"]["flops_per_image"]
    assert found["protocol"]["training_images_seen"] == whole["protocol"]["training_images_seen"]
    assert found["cost"]["seconds"] == whole["cost"]["seconds"]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_the_table_has_both_views_and_what_is_to_be_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    trainer(tmp_path, ContinualReport()).fit(recipe(LWF), datamodule=sequence())
    lines, report = printed(capsys), report_of(tmp_path)
    assert max(map(len, lines)) <= 80
    aware, agnostic = (report["matrix"][view][3] for view in ("aware", "agnostic"))
    for task, name in enumerate(["task 1: ant, bee", "task 2: cat, dog", "task 3: elk, fox"]):
        assert any(
            line.startswith(f" {name} ") and line.split()[-2:] == [f"{100 * x[task]:.1f}" for x in (aware, agnostic)]
            for line in lines
        )
    for name in MEASURES:
        of_views = [report["measures"][view][name] for view in ("aware", "agnostic")]
        values = ["–" if value is None else f"{100 * value:.1f}" for value in of_views]
        assert any(line.startswith(f" {name.replace('_', ' ')} ") and line.split()[-2:] == values for line in lines)
    assert " ".join(report["expectation"].split()[:6]) in " ".join(" ".join(lines).split())


def test_where_both_views_are_the_same_there_is_one_column_and_one_panel(tmp_path: Path, drawn: dict[str, Any]) -> None:
    trainer(tmp_path, ContinualReport()).fit(recipe(scenario="domain"), datamodule=sequence("domain"))
    report = report_of(tmp_path)
    result = table(report)
    assert [column.header for column in result.columns] == ["", "accuracy"]
    assert list(result.columns[0].cells)[:3] == ["task 1", "task 2", "task 3"]  # all have the same classes
    assert not {"task-aware", "task-agnostic"} & {text for figure in drawn.values() for text in texts(figure)}


def test_a_test_after_training_prints_no_report_again_but_one_of_a_checkpoint_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, model = trainer(tmp_path / "fit", ContinualReport()), recipe()
    first.fit(model, datamodule=sequence())
    first.save_checkpoint(tmp_path / "last.ckpt")
    assert sum("average accuracy" in line for line in printed(capsys)) == 1
    first.test(model, datamodule=sequence(), verbose=False)
    assert not any("average accuracy" in line for line in printed(capsys))
    second = trainer(tmp_path / "test", ContinualReport())
    second.test(recipe(), sequence(), ckpt_path=tmp_path / "last.ckpt", verbose=False, weights_only=True)
    assert sum("average accuracy" in line for line in printed(capsys)) == 1
    ours, theirs = report_of(tmp_path / "test"), report_of(tmp_path / "fit")
    assert (ours["matrix"], ours["measures"], ours["cost"]) == (theirs["matrix"], theirs["measures"], theirs["cost"])


def test_a_sequence_that_was_cut_short_is_reported_as_far_as_it_came(tmp_path: Path) -> None:
    trainer(tmp_path, ContinualReport(), max_epochs=3).fit(recipe(), datamodule=sequence())
    report = report_of(tmp_path)
    assert report["tasks_learned"] == 2
    assert report["matrix"]["aware"][3] == [None] * 3
    assert len(report["cost"]["seconds"]) == 2
    assert "2 of 3 tasks" in str(table(report).title)
    assert "task 3: elk, fox" not in list(table(report).columns[0].cells)


def test_after_one_task_there_is_neither_transfer_nor_a_picture_of_forgetting(
    tmp_path: Path, drawn: dict[str, Any]
) -> None:
    trainer(tmp_path, ContinualReport(), max_epochs=2).fit(recipe(), datamodule=sequence())
    measures = report_of(tmp_path)["measures"]["aware"]
    assert [name for name in MEASURES if measures[name] is None] == [
        "backward_transfer",
        "forward_transfer",
        "forgetting",
    ]
    assert set(drawn) == {"accuracy-matrix.png", "accuracy-over-tasks.png"}


@pytest.mark.parametrize("how", ["fast_dev_run", "other recipe", "no task ends"])
def test_nothing_is_written(
    how: str, tmp_path: Path, drawn: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"fast_dev_run": {"fast_dev_run": True}, "no task ends": {"max_epochs": 1}}.get(how, {})
    it = trainer(tmp_path, ContinualReport(), **(options or {"max_epochs": 1}))
    other = how == "other recipe"
    model = Supervised(MLP(3, hidden=(HIDDEN,)), 6, scheduler=None) if other else recipe()
    data: Any = Animals() if other else sequence()
    it.fit(model, datamodule=data)
    it.test(model, datamodule=data, verbose=False)
    assert not [*tmp_path.rglob("continual.json")]
    assert not drawn
    assert "accuracy" not in capsys.readouterr().out


def fit(path: Path, processes: int) -> dict[str, Any]:
    strategy = "ddp" if processes > 1 else "auto"
    report = ContinualReport()
    trainer(path, report, devices=processes, strategy=strategy).fit(recipe(LWF), datamodule=sequence())
    return {"images": report.images, "flops": report.flops_per_image}


def test_two_processes_write_the_report_of_one(tmp_path: Path) -> None:
    (alone,) = run(fit, tmp_path / "one", 1)
    for each in run(fit, tmp_path / "two", 2, processes=2):
        assert each == alone
    one, two = (report_of(tmp_path / name) for name in ("one", "two"))
    assert two["matrix"] == one["matrix"]
    assert two["protocol"] == one["protocol"] | {
        "devices": 2, "training_minutes": two["protocol"]["training_minutes"],
    }  # fmt: skip
    assert (tmp_path / "two/pictures/accuracy-matrix.png").is_file()
