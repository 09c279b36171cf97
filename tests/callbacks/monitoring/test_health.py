import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from recipes.callbacks import Health


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
