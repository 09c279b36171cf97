import contextlib
import copy
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import Batch, Digits
from recipes import SimCLR
from recipes.callbacks import CollapseMonitor, Health, Pictures, RepresentationProbe
from recipes.callbacks.reporting.probe_budget import ProbeBudget
from recipes.nn import ConvNet
from tests.helpers.drawing import draw_nothing


def digits(batch_size: int = 128) -> Digits:
    return Digits(size=8, batch_size=batch_size)


def recipe() -> SimCLR:
    seed_everything(0, verbose=False)
    return SimCLR(ConvNet((8, 16)), scheduler=None)


def trainer(path: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", callbacks=list(callbacks), default_root_dir=path, enable_progress_bar=False,
        enable_model_summary=False, **{"max_epochs": 3, "logger": False, "enable_checkpointing": False, **options},
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One run with all callbacks, fit and test, and with its pictures."""
    draw_nothing(left_out=False)
    path = tmp_path_factory.mktemp("run")
    probe = RepresentationProbe(every_n_epochs=2, draws=4)
    model = recipe()
    logger = CSVLogger(path, name="", version="")
    it = trainer(path, probe, CollapseMonitor(), Health(), Pictures(points=120), logger=logger, log_every_n_steps=1)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        it.fit(model, datamodule=digits())
        fitted = dict(it.callback_metrics)
        it.save_checkpoint(path / "last.ckpt")
        it.test(model, datamodule=digits(), verbose=False)
    report = json.loads((path / "evaluation.json").read_text())
    return SimpleNamespace(
        path=path, model=model, probe=probe, fitted=fitted, tested=it.callback_metrics, report=report,
        printed=printed.getvalue(),
    )  # fmt: skip


def images(split: Any) -> tuple[np.ndarray, np.ndarray]:
    image = split.images(torch.arange(len(split)))
    return image.numpy(), split.label.numpy()


def sklearn_scores(bank: np.ndarray, bank_label: np.ndarray, query: np.ndarray, label: np.ndarray) -> dict[str, float]:
    knn = KNeighborsClassifier(200, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    std = bank.std(0)
    std[std == 0] = 1
    linear = LogisticRegression(C=1, tol=1e-6, max_iter=5000).fit((bank - bank.mean(0)) / std, bank_label)
    return {
        "knn": knn.fit(bank, bank_label).score(query, label),
        "linear": linear.score((query - bank.mean(0)) / std, label),
    }


@pytest.mark.slow
def test_accuracies_on_raw_pixels_are_those_of_scikit_learn(run: SimpleNamespace) -> None:
    data = digits()
    data.setup()
    (bank, bank_label), (query, label) = images(data.splits.train), images(data.splits.test)
    flat = [x.reshape(len(x), -1) / 255 for x in (bank, query)]
    expected = sklearn_scores(flat[0], bank_label, flat[1], label)
    got = run.report["accuracy"]["raw_pixels"]
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1.5 / len(label))


@pytest.mark.parametrize("row", ["trained_encoder", "random_encoder"])
def test_accuracies_of_encoders_are_those_of_scikit_learn_on_their_features(run: SimpleNamespace, row: str) -> None:
    data = digits()
    data.setup()
    model = run.model if row == "trained_encoder" else recipe()
    model.normalize.set(data.mean, data.std)
    model.eval()
    with torch.no_grad():
        bank, query = (
            model(split.images(torch.arange(len(split)))).numpy().astype(np.float64)
            for split in (data.splits.train, data.splits.test)
        )
    label = data.splits.test.label.numpy()
    expected = sklearn_scores(bank, data.splits.train.label.numpy(), query, label)
    got = run.report["accuracy"][row]
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1.5 / len(label))


def test_what_is_written_is_what_is_logged(run: SimpleNamespace) -> None:
    rows = {"test/": "trained_encoder", "test/random_encoder/": "random_encoder", "test/raw_pixels/": "raw_pixels"}
    for prefix, row in rows.items():
        results = run.report["accuracy"][row]
        assert set(results) == {f"{p}{n}" for p in ("knn", "linear") for n in ("", "_1_per_class", "_5_per_class")}
        for column, value in results.items():
            mean = value if column in ("knn", "linear") else value["mean"]
            assert run.tested[prefix + column].item() == pytest.approx(mean, abs=1e-6)
    header = (run.path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/knn", "val/linear", "test/knn", "val/feature_std", "train/grad_norm", "train/data_wait"} <= set(header)


def test_the_table_is_printed_with_a_line_for_each_row(run: SimpleNamespace) -> None:
    lines = run.printed.splitlines()
    assert max(map(len, lines)) <= 80
    for name, row in run.report["accuracy"].items():
        line = next(line for line in lines if line.strip().startswith(name.replace("_", " ")))
        few = [
            f"{100 * row[c]['mean']:.1f} ±{100 * row[c]['std']:.1f}" for c in ("knn_1_per_class", "linear_5_per_class")
        ]
        assert all(cell in line for cell in [*few, f"{100 * row['knn']:.1f}", f"{100 * row['linear']:.1f}"])


def test_few_labels_have_the_sample_standard_deviation_of_their_draws(run: SimpleNamespace) -> None:
    values = run.probe.accuracies["trained encoder"]["linear_5_per_class"]
    assert len(values) == 4
    written = run.report["accuracy"]["trained_encoder"]["linear_5_per_class"]
    assert written == pytest.approx({"mean": np.mean(values), "std": np.std(values, ddof=1)})


def test_the_protocol_stands_beside_the_numbers(run: SimpleNamespace) -> None:
    protocol = run.report["protocol"]
    assert protocol["knn"] == {"k": 200, "temperature": 0.07, "similarity": "cosine"}
    assert protocol["few_labels"] == {"per_class": [1, 5], "draws": 4, "seed": 0}
    assert (protocol["bank_images"], protocol["test_images"], protocol["num_classes"]) == (1257, 360, 10)
    assert (protocol["epochs"], protocol["run_seed"], protocol["split"]) == (3, 0, "test")
    assert (run.report["recipe"], run.report["encoder"], run.report["data"]) == ("SimCLR", "ConvNet", "Digits")
    assert run.report["versions"]["torch"] == torch.__version__


def test_training_is_measured_every_so_many_epochs_and_at_the_end(run: SimpleNamespace) -> None:
    assert [step for step, _, _ in run.probe.history] == [2 * 9, 3 * 9]  # 1257 images in batches of 128, 3 epochs
    assert run.fitted["val/knn"].item() == pytest.approx(run.probe.history[-1][1])
    assert run.fitted["val/linear"].item() == pytest.approx(run.probe.history[-1][2])


def test_the_random_encoder_is_in_no_checkpoint_and_not_trained(run: SimpleNamespace) -> None:
    fresh = recipe()
    kept = run.probe._references.initial
    assert all(torch.equal(value, fresh.encoder.state_dict()[name]) for name, value in kept.state_dict().items())
    checkpoint = torch.load(run.path / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"].keys() == fresh.state_dict().keys()
    assert run.probe.measured == {}  # features are let go


def test_the_whole_run_is_drawn(run: SimpleNamespace) -> None:
    for name in ("loss", "views", "tsne", "neighbours"):
        with Image.open(run.path / "pictures" / f"{name}.png") as picture:
            assert min(picture.size) > 300
            assert len(picture.convert("L").getcolors()) > 10  # not blank


def test_a_checkpoint_is_compared_with_the_encoder_before_it_was_loaded(run: SimpleNamespace, tmp_path: Path) -> None:
    model = recipe()
    trainer(tmp_path, RepresentationProbe(draws=4)).test(
        model, digits(), ckpt_path=run.path / "last.ckpt", verbose=False
    )
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["accuracy"] == run.report["accuracy"]
    protocol = run.report["protocol"]  # the epochs, too
    assert protocol["checkpoint"]["name"] == "the last state of the training"
    assert report["protocol"] == protocol | {"checkpoint": protocol["checkpoint"] | {"name": "last.ckpt"}}


class _Second(Callback):
    """Saves a checkpoint after the validation of the second epoch, as that of a best epoch is saved."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path)


def test_only_the_test_in_a_training_has_a_budget_and_it_is_that_of_the_whole_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recipes.callbacks.reporting.probe_budget.FREE", 0)
    budgets: list[int] = []
    of_test = ProbeBudget.of_test

    def spied(self: ProbeBudget, trainer: Trainer, recipe: LightningModule, references: Any, images: int) -> Any:
        if trainer.testing:
            budgets.append(images)
        return of_test(self, trainer, recipe, references, images)

    monkeypatch.setattr(ProbeBudget, "of_test", spied)
    file, model = tmp_path / "best.ckpt", recipe()

    def protocol(it: Trainer) -> Any:
        it.test(model, digits(), ckpt_path=file, verbose=False)
        return json.loads((tmp_path / "evaluation.json").read_text())["protocol"]

    def probe() -> RepresentationProbe:
        return RepresentationProbe(draws=4, max_share=1e-6)

    training = trainer(tmp_path, probe(), _Second(file), max_epochs=3, limit_train_batches=2)
    training.fit(model, digits())
    here, later = protocol(training), protocol(trainer(tmp_path, probe()))
    assert budgets == [3 * 2 * 128, 0]
    assert here["bank_images"] < later["bank_images"] == 1257
    assert "reduced" in here
    assert "reduced" not in later
    best = {"name": "best.ckpt", "epochs": 2, "training_images_seen": 2 * 2 * 128}
    assert here["checkpoint"] == later["checkpoint"] == best
    assert (here["epochs"], here["training_images_seen"]) == (3, 3 * 2 * 128)
    assert (later["epochs"], later["training_images_seen"]) == (2, 2 * 2 * 128)


def test_the_protocol_names_the_weights_that_were_loaded_last(tmp_path: Path) -> None:
    model, options = recipe(), {"draws": 1, "labels_per_class": [], "references": False}
    it = trainer(tmp_path, RepresentationProbe(**options), max_epochs=1, limit_train_batches=2)

    def checkpoint(file: Path | None) -> Any:
        it.test(model, digits(), ckpt_path=file, verbose=False)
        return json.loads((tmp_path / "evaluation.json").read_text())["protocol"]["checkpoint"]

    it.fit(model, digits())
    it.save_checkpoint(tmp_path / "a.ckpt")
    trained = {"epochs": 1, "training_images_seen": 2 * 128}
    assert checkpoint(None) == {"name": "the last state of the training", **trained}
    content = torch.load(tmp_path / "a.ckpt", weights_only=True)
    content["callbacks"].pop("RepresentationProbe")
    torch.save(content, tmp_path / "of another Trainer.ckpt")
    of_another = {"name": "of another Trainer.ckpt", "epochs": None, "training_images_seen": None}
    assert checkpoint(tmp_path / "of another Trainer.ckpt") == of_another
    assert checkpoint(None) == of_another
    assert checkpoint(tmp_path / "a.ckpt") == {"name": "a.ckpt", **trained}


@pytest.mark.slow
def test_weights_after_training_are_bit_identical_without_callbacks(run: SimpleNamespace, tmp_path: Path) -> None:
    class Drawing(SimCLR):  # torch's generator decides about its gradients
        def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * torch.rand(())

    weights = []
    for callbacks in ([], [RepresentationProbe(draws=2), CollapseMonitor(), Health(), Pictures()]):
        seed_everything(0, verbose=False)
        model = Drawing(ConvNet((8, 16)), scheduler=None)
        trainer(tmp_path, *callbacks, max_epochs=2).fit(model, datamodule=digits())
        weights.append((model.state_dict(), torch.get_rng_state()))
    (plain, state), (watched, watched_state) = weights
    assert all(torch.equal(plain[name], watched[name]) for name in plain)
    assert torch.equal(state, watched_state)


def test_an_encoder_that_has_not_changed_is_compared_with_pixels_alone(tmp_path: Path) -> None:
    trainer(tmp_path, RepresentationProbe(draws=2)).test(recipe(), digits(), verbose=False)
    assert list(json.loads((tmp_path / "evaluation.json").read_text())["accuracy"]) == ["trained_encoder", "raw_pixels"]


def test_an_encoder_that_was_given_weights_is_called_pretrained(tmp_path: Path) -> None:
    model = recipe()
    model.encoder.pretrained = True
    it = trainer(tmp_path, RepresentationProbe(draws=2, labels_per_class=[1]), max_epochs=1)
    it.fit(model, datamodule=digits())
    it.test(model, datamodule=digits(), verbose=False)
    assert "pretrained_encoder" in json.loads((tmp_path / "evaluation.json").read_text())["accuracy"]
    assert "test/pretrained_encoder/knn" in it.callback_metrics


@pytest.mark.parametrize("every", [1, 5])
def test_fast_dev_run_works_and_writes_nothing(tmp_path: Path, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    callbacks = [RepresentationProbe(every), CollapseMonitor(), Health(), Pictures()]
    it = trainer(tmp_path, *callbacks, fast_dev_run=True)
    model = recipe()
    it.fit(model, datamodule=digits())
    it.test(model, datamodule=digits(), verbose=False)
    assert "test/knn" in it.callback_metrics
    assert list(tmp_path.rglob("*")) == []


def test_at_every_0_epochs_nothing_is_measured_not_even_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Digits, "bank_dataloader", None)  # nobody asks for it
    it = trainer(tmp_path, RepresentationProbe(every_n_epochs=0), max_epochs=1, limit_train_batches=1)
    model = recipe()
    it.fit(model, datamodule=digits())
    it.test(model, datamodule=digits(), verbose=False)
    assert not [name for name in it.callback_metrics if "knn" in name or "linear" in name]
    assert not [*tmp_path.rglob("evaluation.json")]
    assert not capsys.readouterr().out


def test_the_sanity_check_is_not_measured(tmp_path: Path) -> None:
    probe = RepresentationProbe()
    it = trainer(tmp_path, probe, CollapseMonitor(), num_sanity_val_steps=2, limit_train_batches=0)
    it.fit(recipe(), datamodule=digits())
    assert probe.history == []


class Unlabelled(Digits):
    """Digits without labels, of which val or test may have some."""

    def __init__(self, known: str = "") -> None:
        super().__init__(size=8)
        self.known = known

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self._splits = copy.copy(self.splits)
        if self.known == "none at all":
            object.__setattr__(self._splits, "class_names", ())
        for name in ("train", "val", "test"):
            if name not in self.known:
                split = copy.copy(getattr(self._splits, name))
                split.label = torch.full_like(split.label, -1)
                object.__setattr__(self._splits, name, split)


@pytest.mark.parametrize("known", ["none at all", "train"])
def test_without_labels_it_says_once_that_there_is_nothing_to_measure(
    known: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    probe = RepresentationProbe()
    it = trainer(tmp_path, probe, Pictures(), max_epochs=2)
    model, data = recipe(), Unlabelled(known)
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        it.fit(model, datamodule=data)
        it.test(model, datamodule=data, verbose=False)
    said = [
        record.getMessage()
        for record in caplog.records
        if "RepresentationProbe measures nothing" in record.getMessage()
    ]
    assert len(said) == 1
    assert not [name for name in it.callback_metrics if "knn" in name or "linear" in name]
    assert not (tmp_path / "evaluation.json").exists()


def test_without_a_datamodule_it_measures_nothing(tmp_path: Path) -> None:
    data = digits()
    data.setup()
    loader: DataLoader[Batch] = data.test_dataloader()
    it = trainer(tmp_path, RepresentationProbe())
    it.test(recipe(), loader, verbose=False)
    assert it.callback_metrics == {}


def test_columns_for_which_a_class_has_too_few_labels_are_left_out_with_a_warning(tmp_path: Path) -> None:
    it = trainer(tmp_path, RepresentationProbe(labels_per_class=[1, 126], draws=2))
    with pytest.warns(UserWarning, match="no results for 126 labels per class: class . "):
        it.test(recipe(), digits(), verbose=False)
    columns = json.loads((tmp_path / "evaluation.json").read_text())["accuracy"]["trained_encoder"]
    assert set(columns) == {"knn", "linear", "knn_1_per_class", "linear_1_per_class"}


@pytest.mark.slow
def test_of_a_small_bank_all_images_vote_and_a_line_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    accuracies, lines = [], []
    for k in (2000, 1257, 5):
        with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
            it = trainer(tmp_path, RepresentationProbe(k=k, labels_per_class=[], references=False))
            it.validate(recipe(), digits(), verbose=False)
            it.test(recipe(), digits(), verbose=False)
        report = json.loads((tmp_path / "evaluation.json").read_text())
        accuracies.append(report["accuracy"])
        assert report["protocol"]["knn"]["k"] == min(k, 1257)
        lines.append([line for record in caplog.records if "all of them vote" in (line := record.getMessage())])
        caplog.clear()
    assert accuracies[0] == accuracies[1] != accuracies[2]
    assert lines == [["k is 2000, and there are 1257 labelled training images: all of them vote."], [], []]


def test_a_bank_that_does_not_fit_is_a_subset_that_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def evaluate(data: Digits, **options: Any) -> dict[str, Any]:
        it = trainer(tmp_path, RepresentationProbe(k=20, labels_per_class=[], references=False, **options))
        it.test(recipe(), data, verbose=False)
        return json.loads((tmp_path / "evaluation.json").read_text())

    class Third(Digits):
        """Has no more images in the bank than every third."""

        def bank_dataloader(self, every: int = 1) -> DataLoader[Batch]:
            return super().bank_dataloader(every=3)

    expected = evaluate(Third(size=8))
    assert "bank_subset" not in expected["protocol"]
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        found = evaluate(digits(), max_bytes=1257 * 16 * 4 // 3)
    assert found["protocol"].pop("bank_subset") == "one of every 3 labelled images: 419 of 1,257"
    assert found["protocol"]["bank_images"] == 419
    assert found["accuracy"] == expected["accuracy"]
    assert sum("one of every 3 labelled images: 419 of 1,257" in record.getMessage() for record in caplog.records) == 1


def test_without_references_and_few_labels_only_the_trained_encoder_is_measured(
    run: SimpleNamespace, tmp_path: Path
) -> None:
    it = trainer(tmp_path, RepresentationProbe(labels_per_class=[], references=False))
    model = recipe()
    it.test(model, digits(), ckpt_path=run.path / "last.ckpt", verbose=False)
    report = json.loads((tmp_path / "evaluation.json").read_text())
    whole = run.report["accuracy"]["trained_encoder"]
    assert report["accuracy"] == {"trained_encoder": {name: whole[name] for name in ("knn", "linear")}}
    assert report["protocol"]["few_labels"]["per_class"] == []
    assert {name for name in it.callback_metrics if "knn" in name or "linear" in name} == {"test/knn", "test/linear"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"every_n_epochs": -1},
        {"k": 0},
        {"temperature": -1.0},
        {"draws": 0},
        {"labels_per_class": [1, 0]},
        {"max_bytes": 0},
    ],
)
def test_numbers_that_are_not_positive_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is .* must be positive"):
        RepresentationProbe(**wrong)
