import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from recipes.callbacks import Checkpoint, Health
from recipes.errors import Diverged
from tests.helpers.processes import run


class Slope(LightningModule):
    """Its gradient is (3, 0, 4) times the batch, of norm 5 for a batch of one."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(2))
        self.b = nn.Parameter(torch.zeros(()))
        self.unused = nn.Parameter(torch.zeros(5))
        self.seconds = seconds
        self.steps_with_norm: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        time.sleep(self.seconds)
        return (3 * self.a[0] + 4 * self.b) * batch.mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        time.sleep(0.2)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset[Tensor]):
    def __init__(self, values: list[float], seconds: float = 0.0) -> None:
        self.values, self.seconds = values, seconds

    def __iter__(self) -> Iterator[Tensor]:
        for value in self.values:
            time.sleep(self.seconds)
            yield torch.tensor(value)


def train(model: LightningModule, data: Stream, path: Path, **options: Any) -> list[dict[str, float]]:
    logger = CSVLogger(path, name="", version="")
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=logger, callbacks=[Health()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **{"log_every_n_steps": 1, **options},
    )  # fmt: skip
    val = DataLoader(Stream([0.0]), batch_size=None) if "val_check_interval" in options else None
    trainer.fit(model, DataLoader(data, batch_size=None), val)
    lines = [line.split(",") for line in (path / "metrics.csv").read_text().splitlines()]
    return [{k: float(v) for k, v in zip(lines[0], line) if v} for line in lines[1:]]


def column(table: list[dict[str, float]], name: str) -> dict[int, float]:
    return {int(row["step"]): row[name] for row in table if name in row}


def test_grad_norm_is_that_of_all_gradients_before_clipping(tmp_path: Path) -> None:
    table = train(Slope(), Stream([1.0, -2.0, 0.5]), tmp_path, gradient_clip_val=0.1)
    assert column(table, "train/grad_norm") == pytest.approx({0: 5, 1: 10, 2: 2.5})


def test_grad_norm_of_accumulated_batches_is_that_of_their_mean(tmp_path: Path) -> None:
    table = train(Slope(), Stream([1.0, 3.0, 0.5, 0.5]), tmp_path, accumulate_grad_batches=2)
    assert column(table, "train/grad_norm") == pytest.approx({0: 10, 1: 2.5})


def test_grad_norm_is_computed_on_logged_steps_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.callbacks.monitoring import health

    computed = []
    norm = health.get_total_norm
    monkeypatch.setattr(health, "get_total_norm", lambda gradients: computed.append(1) or norm(gradients))
    table = train(Slope(), Stream([1.0] * 7), tmp_path, log_every_n_steps=3)
    assert column(table, "train/grad_norm") == pytest.approx({2: 5, 5: 5})
    assert len(computed) == 2


def test_data_wait_is_the_share_of_time_between_batches(tmp_path: Path) -> None:
    slow_data = column(
        train(Slope(0.01), Stream([1.0] * 9, 0.04), tmp_path / "data", log_every_n_steps=4), "train/data_wait"
    )
    slow_step = column(
        train(Slope(0.04), Stream([1.0] * 9, 0.01), tmp_path / "step", log_every_n_steps=4), "train/data_wait"
    )
    assert list(slow_data) == list(slow_step) == [3, 7]
    assert 0.5 < slow_data[7] < 1  # 0.8, but for what else the machine does
    assert 0 < slow_step[7] < 0.5  # 0.2


def test_validation_between_batches_is_no_waiting_for_data(tmp_path: Path) -> None:
    table = train(Slope(0.02), Stream([1.0] * 6), tmp_path, val_check_interval=1, log_every_n_steps=2)
    assert all(share < 0.5 for share in column(table, "train/data_wait").values())  # validation alone is 10 steps long


# What is not finite


class Normed(Slope):
    """Slope whose batches also pass a batch norm, and whose weights have momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.norm(torch.stack([batch, batch + 1])[:, None])
        return super().training_step(batch, batch_idx) + self.a.square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


def fit(model: LightningModule, values: list[float], path: Path, mode: Any = "stop", **options: Any) -> Trainer:
    checkpoint = Checkpoint(every_n_train_steps=1)
    checkpoint.dirpath = str(path)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[Health(mode), checkpoint], default_root_dir=path,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1, **options,
    )  # fmt: skip
    trainer.fit(model, DataLoader(Stream(values), batch_size=None))
    return trainer


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_at_its_step_and_keeps_the_checkpoint_before(
    value: float, tmp_path: Path
) -> None:
    model = Slope()
    with pytest.raises(Diverged, match=r"at step 3 \(learning rate 0.1, last finite loss 0\).*last.ckpt"):
        fit(model, [0.0, 1.0, value, 1.0, 1.0], tmp_path)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert saved["state_dict"]["b"].item() == pytest.approx(-0.4)  # after the second batch


def test_a_weight_that_overflows_stops_although_the_loss_is_finite(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="weights became infinite or NaN at step 2"):
        fit(Slope(), [0.0, -3e38, 1.0], tmp_path)  # the loss is 0, its gradient overflows
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1


def test_skip_leaves_weights_momentum_and_batch_norm_as_without_the_batch(tmp_path: Path) -> None:
    with_bad, without = Normed(), Normed()
    fit(with_bad, [1.0, 2.0, float("nan"), float("inf"), 0.5], tmp_path, "skip")
    fit(without, [1.0, 2.0, 0.5], tmp_path)
    for name, value in without.state_dict().items():
        assert torch.equal(value, with_bad.state_dict()[name]), name


def test_skip_ends_after_ten_batches_in_a_row(tmp_path: Path) -> None:
    fit(Slope(), [*[float("nan")] * 9, 1.0] * 2, tmp_path, "skip")
    with pytest.raises(Diverged, match="not finite 10 times in a row at step 12"):
        fit(Slope(), [1.0, 1.0, *[float("nan")] * 11], tmp_path, "skip")


@pytest.mark.parametrize("mode", ["stop", "skip"])
def test_skip_is_recommended_to_a_run_that_does_not_skip(mode: str, tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="gradient_clip_val 1") as failure:
        fit(Slope(), [float("nan")] * 11, tmp_path, mode)
    assert "(gradient_clip_val 1 of the Trainer)" in str(failure.value)
    assert ("on_nonfinite skip" in str(failure.value)) == (mode == "stop")


def test_ignore_goes_on(tmp_path: Path) -> None:
    assert fit(Slope(), [1.0, float("nan"), 1.0], tmp_path, "ignore").global_step == 3


def test_steps_that_the_scaler_of_float16_skips_are_no_failure(tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=1000)  # type: ignore[attr-defined]
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    fit(Slope(), [1e30, *[1.0] * 5], tmp_path, plugins=[plugin])
    assert scaler.get_scale() < 2.0**30  # it did skip


def test_in_accumulated_batches_each_loss_counts(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match="at step 2 "):
        fit(Slope(), [1.0, 1.0, float("nan"), 1.0], tmp_path, accumulate_grad_batches=2)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="on_nonfinite is 'halt': it must be stop, skip or ignore"):
        Health("halt")  # type: ignore[arg-type]


class OnRank(Slope):
    """Slope whose loss is not finite in the third batch, on the second device alone, with gradients that are."""

    def __init__(self) -> None:
        super().__init__()
        self.unused.requires_grad_(False)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        bad = batch_idx == 2 and self.global_rank == 1
        return super().training_step(batch, batch_idx) + (torch.inf if bad else 0.0)


def steps_and_words(path: Path) -> tuple[int, str]:
    model = OnRank()
    with pytest.raises(Diverged) as failure:
        fit(model, [1.0] * 20, path, devices=2, strategy="ddp")
    return model.trainer.global_step, str(failure.value)


def test_two_processes_end_at_the_same_step_with_the_same_words(tmp_path: Path) -> None:
    one, other = run(steps_and_words, tmp_path, processes=2)
    assert one == other
    assert one[0] == 4  # one step after the one that failed
    assert "the loss was inf at step 3" in one[1]
