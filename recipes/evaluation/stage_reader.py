from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from datamodules import ImageDataModule
from recipes.base.recipe import Recipe
from recipes.nn import Encoder, stage_features


class StageReader(Recipe):
    """Reads the features of all stages of a frozen encoder side by side, in one pass.

    Args:
        encoder: of whose stages; it is moved to the Trainer's device.
        data: says how images are normalised, where the encoder does not know it; refuses one that does not suit them.
        trainer: whose device is used.
    """

    def __init__(self, encoder: Encoder, data: ImageDataModule, trainer: Trainer) -> None:
        super().__init__(encoder, torch.optim.SGD)  # which is never made
        self.widths: list[int] = []
        trainer.datamodule = data  # type: ignore[attr-defined]
        self.trainer = trainer
        self.setup("validate")
        self.to(trainer.strategy.root_device)

    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W], uint8 or float in [0, 1], to the features of all stages [B, sum of their F]."""
        features = stage_features(self.encoder, self.normalize(image))
        self.widths = [feature.shape[1] for feature in features]
        return torch.cat(features, dim=1)

    def split(self, feature: Tensor) -> tuple[Tensor, ...]:
        """Takes what ``forward`` gave [N, sum of F] apart: [N, F] of each stage."""
        return feature.split(self.widths, dim=1)


def quiet_trainer(**options: Any) -> Trainer:
    """A Trainer of one device that leaves nothing behind."""
    quiet = ("enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return Trainer(**{"devices": 1, "logger": False, **dict.fromkeys(quiet, False), **options})
