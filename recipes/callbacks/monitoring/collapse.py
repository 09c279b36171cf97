from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from datamodules import Batch
from recipes.evaluation.collapse import effective_rank
from recipes.evaluation.features import Collector
from recipes.nn import feature_std


class CollapseMonitor(Callback):
    """Shows whether features collapse, on the validation images of all devices.

    Logs ``val/feature_std``, 1 for features that spread evenly over the sphere and 0 for a single point, and
    ``val/effective_rank``, the number of dimensions that features use (RankMe: Garrido et al., 2023, arXiv:2210.02885,
    Equation 1). Labels are not needed.
    """

    def __init__(self) -> None:
        self._collector: Collector | None = None

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes room for features."""
        dtype = torch.promote_types(pl_module.dtype, torch.float32)  # type: ignore[arg-type]
        self._collector = None if trainer.sanity_checking else Collector(pl_module.device, dtype)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the features that ``validation_step`` returned."""
        if self._collector is not None:
            self._collector.add(outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs both numbers."""
        if self._collector is None:
            return
        feature = self._collector.gather().feature
        self._collector = None
        if len(feature):
            pl_module.log("val/feature_std", feature_std(feature), sync_dist=True)
            pl_module.log("val/effective_rank", effective_rank(feature), sync_dist=True)
