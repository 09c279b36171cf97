"""Which labelled images ``RepresentationProbe`` classifies others by, and their features."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import nn

from recipes.callbacks.reporting.progress import SaidOnce, shown
from recipes.evaluation.bank import Bank, extract_bank, stored_types


class BankReader:
    """Reads the bank of a run, within a bound of memory.

    Args:
        max_bytes: see ``RepresentationProbe``.
        tell: prints that the bank is a subset.

    Attributes:
        subset: names the labelled images that were used, if not all.
    """

    def __init__(self, max_bytes: int, tell: SaidOnce) -> None:
        self.max_bytes = max_bytes
        self.subset = ""
        self._tell = tell

    def read(
        self, trainer: Trainer, encoders: Mapping[str, nn.Module], widths: Mapping[str, int], every: int
    ) -> dict[str, Bank]:
        """Takes the features of the labelled training images; every device has to call this.

        Args:
            trainer: with a DataModule.
            encoders: see ``extract_bank``.
            widths: numbers of features of the encoders.
            every: step between the images that are used, if more would fit in memory.

        Returns:
            The bank of each encoder.
        """
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loader = data.bank_dataloader()
        images = getattr(loader.sampler, "count", len(loader.dataset))
        types = stored_types(encoders, data.image_shape, trainer)
        row = sum(width * types[name].itemsize for name, width in widths.items())  # bytes
        fits = max(1, math.ceil(row * images / self.max_bytes))
        every = max(every, fits)
        if every > 1:
            loader = data.bank_dataloader(every=every)
        batches = shown(trainer, loader, "images of the bank")
        banks = extract_bank(encoders, batches, trainer, types, images=len(loader.sampler))
        used = len(next(iter(banks.values())).label)
        self.subset = f"one of every {every} labelled images: {used:,} of {images:,}" if every > 1 else ""
        if fits > 1:
            self._tell(
                f"bank of {row} bytes",
                f"the features of the bank would take {1e-9 * row * images:.1f} GB and may take "
                f"{self.max_bytes / 1e9:.1f} GB: it is {self.subset} (--probe.max_bytes)",
            )
        return banks
