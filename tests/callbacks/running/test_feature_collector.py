"""Reports share what is collected of the images, and no image is encoded twice for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from datamodules import Batch, Digits
from recipes import SimCLR, Supervised
from recipes.callbacks import ClassReport, CollapseMonitor, FeatureCollector, Pictures, RepresentationProbe
from recipes.evaluation.features import Features
from recipes.nn import ConvNet, stage_features, stages
from tests.helpers.processes import run

LABELS = [0, 1, -1, 1, 0, 1, 0]


class Counting(LightningModule):
    """Features are the pixels; counts how often it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Flatten()
        self.passes = 0

    def forward(self, image: Tensor) -> Tensor:
        self.passes += 1
        return self.encoder(image.float())

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return self(batch.image)

    test_step = validation_step

    def batch_logits(self, batch: Batch, feature: Tensor) -> Tensor:
        return feature[:, :2] * 10


class Reader(Callback):
    """Asks for some columns and keeps what it reads."""

    def __init__(self, *names: str, **own: Callable[..., Tensor]) -> None:
        self.names, self.own = names, own
        self.read: list[dict[str, Features]] = []
        self.subset: str | None = None

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name in self.names:
            FeatureCollector.of(trainer).collect(name)
        for name, column in self.own.items():
            FeatureCollector.of(trainer).collect(name, column)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.read.append(FeatureCollector.of(trainer).gather())
        self.subset = FeatureCollector.of(trainer).subset

    on_validation_epoch_start = on_test_epoch_start
    on_validation_epoch_end = on_test_epoch_end


def images(count: int = 7, start: int = 0) -> Tensor:
    return torch.arange(start, start + count * 4, dtype=torch.uint8).view(count, 1, 2, 2)


class Images(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Batches that come as they are."""

    def __init__(self, count: int = 7, start: int = 0) -> None:
        self.image = images(count, start)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, i: int) -> Batch:
        return Batch(self.image[i], torch.tensor(LABELS[i]), torch.tensor(i))


def collate(parts: list[Batch]) -> Batch:
    return Batch(*(torch.stack(x) for x in zip(*parts, strict=True)))


def loader(count: int = 7, start: int = 0) -> DataLoader[Batch]:
    return DataLoader(Images(count, start), batch_size=3, collate_fn=collate)


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", callbacks=list(callbacks), logger=False, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False, **options,
    )  # fmt: skip


@pytest.fixture
def gathers(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The columns of each time that those of all devices were joined."""
    seen: list[list[str]] = []
    from recipes.evaluation.features import Collector

    whole = Collector.gather_columns

    def counted(self: Collector) -> dict[str, Features]:
        seen.append(sorted(self._columns))
        return whole(self)

    monkeypatch.setattr(Collector, "gather_columns", counted)
    return seen


def test_readers_share_one_pass_and_one_gathering(gathers: list[list[str]]) -> None:
    recipe, one, other = Counting(), Reader("feature"), Reader("feature", "logits", sums=lambda r, b, f: f.sum(1, True))
    trainer(one, other).test(recipe, loader(), verbose=False)
    assert recipe.passes == 3  # batches
    assert gathers == [["feature", "logits", "sums"]]
    feature = images().flatten(1).float()
    assert one.read[0]["feature"].feature.equal(feature)
    assert other.read[0]["logits"].feature.equal(10 * feature[:, :2])
    assert other.read[0]["sums"].feature.equal(feature.sum(1, keepdim=True))
    assert other.read[0]["sums"].label.tolist() == LABELS
    assert other.read[0]["sums"].index.tolist() == list(range(7))


def test_a_run_has_one_collector_and_drops_what_it_held() -> None:
    readers = [Reader("feature"), Reader("logits")]
    it = trainer(*readers)
    for _ in range(2):
        it.test(Counting(), loader(), verbose=False)
    it.validate(Counting(), loader(), verbose=False)
    (collector,) = [callback for callback in it.callbacks if isinstance(callback, FeatureCollector)]
    assert collector._collector is collector._gathered is None
    assert [len(reader.read) for reader in readers] == [3, 3]
    for first, *others in (reader.read for reader in readers):
        assert all(other.keys() == first.keys() for other in others)


class Stepping(Counting):
    """Its step leaves the logits of every other batch for the reports."""

    def __init__(self) -> None:
        super().__init__()
        self.step_columns: dict[str, Tensor] = {}

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> Any:
        feature = self(batch.image)
        if batch_idx % 2 == 0:
            self.step_columns["logits"] = feature[:, :2] * -1
        return feature


def test_a_column_that_the_step_computed_is_read_once() -> None:
    recipe, reader = Stepping(), Reader("logits")
    trainer(reader).test(recipe, loader(), verbose=False)
    feature = images().flatten(1).float()[:, :2]
    expected = torch.cat([feature[:3] * -1, feature[3:6] * 10, feature[6:] * -1])
    assert reader.read[0]["logits"].feature.equal(expected)
    assert recipe.step_columns == {}


class Endless(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    """Seven images, and no length."""

    def __iter__(self) -> Any:
        return iter([Images()[i] for i in range(7)])


def test_images_of_a_dataset_without_a_length_are_collected() -> None:
    reader = Reader("feature")
    trainer(reader).test(Counting(), DataLoader(Endless(), batch_size=3, collate_fn=collate), verbose=False)
    assert reader.read[0]["feature"].index.tolist() == list(range(7))


def test_a_collector_that_the_user_gives_is_used() -> None:
    given, reader = FeatureCollector(), Reader("feature")
    it = trainer(reader, given)
    it.test(Counting(), loader(), verbose=False)
    assert [callback for callback in it.callbacks if isinstance(callback, FeatureCollector)] == [given]
    assert len(reader.read[0]["feature"].label) == 7


def test_images_of_several_loaders_are_in_the_order_of_the_loaders() -> None:
    reader = Reader("feature")
    trainer(reader).test(Counting(), [loader(2, start=40), loader(3)], verbose=False)
    read = reader.read[0]["feature"]
    assert read.index.tolist() == [0, 1, 0, 1, 2]
    assert read.feature[:, 0].tolist() == [40, 44, 0, 4, 8]


def test_batches_that_are_left_out_are_not_collected() -> None:
    reader = Reader("feature")
    trainer(reader, limit_test_batches=2).test(Counting(), loader(), verbose=False)
    assert reader.read[0]["feature"].index.tolist() == list(range(6))


def test_nothing_is_computed_that_nobody_asks_for() -> None:
    class Plain(Counting):
        def test_step(self, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
            self(batch.image)

    reader = Reader()
    trainer(reader).test(Plain(), loader(), verbose=False)
    assert reader.read == [{}]


def test_a_step_that_returns_no_features_is_refused_where_a_report_wants_them() -> None:
    class Plain(Counting):
        def test_step(self, batch: Batch, batch_idx: int) -> Tensor:  # type: ignore[override]
            return self(batch.image).sum()

    with pytest.raises(ValueError, match=r"the features of the batch as a tensor of shape \[3, F\]; got \[\]"):
        trainer(Reader("feature")).test(Plain(), loader(), verbose=False)


def test_a_run_after_one_that_failed_collects_its_own_images() -> None:
    class Failing(Counting):
        fails = True

        def test_step(self, batch: Batch, batch_idx: int) -> Tensor:  # type: ignore[override]
            if self.fails and batch_idx == 1:
                raise RuntimeError("stop")
            return self(batch.image)

    recipe, reader = Failing(), Reader("feature")
    it = trainer(reader)
    with pytest.raises(RuntimeError, match="stop"):
        it.test(recipe, loader(), verbose=False)
    recipe.fails = False
    it.test(recipe, loader(start=8), verbose=False)
    assert reader.read[0]["feature"].feature.equal(images(start=8).flatten(1).float())


def test_columns_that_are_unknown_or_of_two_kinds_are_refused() -> None:
    collector = FeatureCollector()
    with pytest.raises(ValueError, match="column is 'features': it must be one of feature, logits"):
        collector.collect("features")
    collector.collect("own", lambda recipe, batch, feature: feature)
    with pytest.raises(ValueError, match="column is 'own': another report collects something else"):
        collector.collect("own", lambda recipe, batch, feature: -feature)
    with pytest.raises(ValueError, match="max_bytes is 0: it must be positive"):
        FeatureCollector(max_bytes=0)


def test_numbers_are_float64_for_a_recipe_in_float64() -> None:
    for precision, dtype in (("32-true", torch.float32), ("64-true", torch.float64), ("bf16-true", torch.float32)):
        reader = Reader("feature")
        trainer(reader, precision=precision).test(Counting(), loader(), verbose=False)
        assert reader.read[0]["feature"].feature.dtype == dtype


def test_stages_are_those_of_the_pass_that_the_step_makes() -> None:
    recipe = SimCLR(ConvNet((4, 8)), scheduler=None)
    reader = Reader("stage:0", "stage:1", "feature")
    data = Digits(size=8, batch_size=100)
    trainer(reader).test(recipe, data, verbose=False)
    split = data.splits.test
    recipe.eval()
    with torch.no_grad():
        expected = stage_features(recipe.encoder, recipe.normalize(split.images(torch.arange(len(split)))))
    assert len(stages(recipe.encoder)) == 2
    for number, feature in enumerate(expected):
        torch.testing.assert_close(reader.read[0][f"stage:{number}"].feature, feature, rtol=1e-4, atol=1e-5)
    assert reader.read[0]["feature"].feature.equal(reader.read[0]["stage:1"].feature)
    assert not any(module._forward_hooks for module in recipe.modules())


BYTES = 7 * (4 * 4 + 16)  # of four float32 features, a label and an index of each image


@pytest.mark.parametrize(("bound", "every"), [(BYTES, 1), (BYTES - 1, 2), (BYTES // 2, 2), (BYTES // 2 - 1, 3)])
def test_memory_is_bounded_by_a_subset_that_is_named(bound: int, every: int) -> None:
    reader = Reader("feature")
    it = trainer(reader, FeatureCollector(bound))
    if every == 1:
        it.test(Counting(), loader(), verbose=False)
        assert reader.subset is None
    else:
        with pytest.warns(UserWarning, match=f"they measure one of every {every} images"):
            it.test(Counting(), loader(), verbose=False)
        assert reader.subset == f"images whose index is a multiple of {every}"
    read = reader.read[0]["feature"]
    assert read.index.tolist() == list(range(0, 7, every))
    assert read.feature.equal(images().flatten(1).float()[::every])


def collect_in_a_process(folder: Path, bound: int, processes: int) -> None:
    reader = Reader("feature", "logits")
    strategy = "ddp" if processes > 1 else "auto"
    it = trainer(reader, FeatureCollector(bound), devices=processes, strategy=strategy)
    it.test(Supervised(ConvNet((4, 8)), 10, scheduler=None), Digits(size=8, batch_size=100), verbose=False)
    columns = {name: [x.tolist() for x in features[1:]] for name, features in reader.read[0].items()}
    (folder / f"{processes}-{it.global_rank}.json").write_text(json.dumps(columns))


@pytest.mark.parametrize("bound", [1 << 30, 4000])
def test_two_processes_collect_the_images_of_one(bound: int, tmp_path: Path) -> None:
    for processes in (1, 2):
        run(collect_in_a_process, tmp_path, bound, processes, processes=processes)
    one, *two = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("1-0", "2-0", "2-1"))
    assert two == [one, one]
    assert one.keys() == {"feature", "logits"}
    count = len(one["feature"][1])
    assert count == 360 if bound > 4000 else 0 < count * (4 * 18 + 16) <= bound + 4 * 18 + 16


@pytest.mark.slow
def test_reports_in_any_order_and_alone_come_to_the_same(tmp_path: Path) -> None:
    def reports(name: str, *callbacks: Callback) -> dict[str, Any]:
        torch.manual_seed(0)
        recipe = Supervised(ConvNet((4, 8)), 10, scheduler=None)
        it = trainer(*callbacks, default_root_dir=tmp_path / name)
        it.validate(recipe, Digits(size=8), verbose=False)
        metrics = {key: value.item() for key, value in it.callback_metrics.items()}
        it.test(recipe, Digits(size=8), verbose=False)
        metrics |= {key: value.item() for key, value in it.callback_metrics.items()}
        files = {path.name: json.loads(path.read_text()) for path in (tmp_path / name).glob("*.json")}
        return {**metrics, **files}

    def made() -> list[Callback]:
        return [RepresentationProbe(draws=2), CollapseMonitor(), ClassReport(mistakes=0), Pictures(points=20)]

    together = reports("together", *made())
    assert {"evaluation.json", "classes.json", "val/knn", "val/effective_rank"} <= together.keys()
    assert reports("reversed", *reversed(made())) == together
    for number, callback in enumerate(made()):
        alone = reports(f"alone-{number}", callback)
        assert alone == {name: together[name] for name in alone}
