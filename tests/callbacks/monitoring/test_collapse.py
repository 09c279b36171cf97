import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules import Batch
from recipes.callbacks import CollapseMonitor


class Collapsing(LightningModule):
    """Its features are the first two pixels."""

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return batch.image[:, 0, 0, :2].float()


def test_the_monitor_measures_all_validation_images_together() -> None:
    image = torch.zeros(4, 1, 1, 2, dtype=torch.uint8)
    image[:2, 0, 0, 0] = 3  # two images at (3, 0) in the first batch, two at (0, 3) in the second
    image[2:, 0, 0, 1] = 3
    index = torch.arange(4)
    data = [Batch(image[:2], index[:2] - 9, index[:2]), Batch(image[2:], index[2:] - 9, index[2:])]
    trainer = Trainer(
        accelerator="cpu", callbacks=[CollapseMonitor()], logger=False, barebones=False,
        enable_progress_bar=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.validate(Collapsing(), DataLoader(data, batch_size=None), verbose=False)  # type: ignore[arg-type]
    assert trainer.callback_metrics["val/feature_std"].item() == pytest.approx(math.sqrt(2) / 2)
    assert trainer.callback_metrics["val/effective_rank"].item() == pytest.approx(2, rel=1e-4)
