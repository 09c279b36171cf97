from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from datamodules import Batch
from recipes.evaluation.features import Collector
from recipes.nn import feature_std


def effective_rank(feature: Tensor) -> Tensor:
    """How many dimensions features use (RankMe: Garrido et al., 2023, arXiv:2210.02885, Equation 1).

    The exponential of the entropy of p_k = σ_k / Σσ + 1e-7, with the singular values σ of the matrix of features.
    Between 1 and min(N, F); NaN if features are not finite.

    Args:
        feature: float [N, F].
    """
    if not feature.isfinite().all():
        return feature.new_tensor(float("nan"))
    sigma = torch.linalg.svdvals(feature)
    p = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny) + 1e-7
    return (-(p * p.log()).sum()).exp()


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
