from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules import Batch
from recipes.features import join


class PredictionFile(Callback):
    """Writes what ``predict_step`` gives for each image to one NumPy file in the run directory.

    ``numpy.load`` reads it: ``index`` [N] is the position of each image in the dataset, in ascending order, ``label``
    [N] its class or -1, ``feature`` [N, F] its features; a recipe with a classifier adds ``probability`` [N, classes].

    Args:
        filename: of the file; ends in .npz.

    Raises:
        ValueError: if ``filename`` does not end in .npz.
    """

    def __init__(self, filename: str = "predictions.npz") -> None:
        if not filename.endswith(".npz"):
            raise ValueError(f"filename is {filename!r}: it must end in .npz, such as predictions.npz")
        self.filename = filename
        self._parts: dict[str, list[Tensor]] = defaultdict(list)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: dict[str, Tensor],
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps what was predicted for a batch."""
        for name, value in {"label": batch.label, **outputs}.items():
            self._parts[name].append(value.detach().float() if value.is_floating_point() else value)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Joins what all devices predicted and writes it, each image once."""
        arrays: dict[str, Any] = {name: join(parts).cpu().numpy() for name, parts in self._parts.items()}
        self._parts.clear()
        directory = Path(trainer.log_dir or trainer.default_root_dir)  # log_dir is a collective
        if not trainer.is_global_zero or not arrays:
            return
        _, rows = np.unique(arrays["index"], return_index=True)
        directory.mkdir(parents=True, exist_ok=True)
        np.savez(directory / self.filename, **{name: array[rows] for name, array in arrays.items()})
        rank_zero_info(f"{len(rows)} images: {directory / self.filename}")
