"""Collects what reports read of the images of a validation or a test, once for all of them."""

import math
from collections.abc import Callable, Sized
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules import Batch
from recipes.evaluation.features import Collector, Features, check_rows
from recipes.nn import watched_stages

Column = Callable[[Any, Batch, Tensor], Tensor]
"""Maps a recipe, a batch and the features [B, F] that the recipe's step returned to a row for each image, [B, n]."""

COLUMNS: dict[str, Column] = {
    "feature": lambda recipe, batch, feature: feature,
    "logits": lambda recipe, batch, feature: recipe.batch_logits(batch, feature),
    "teacher_logits": lambda recipe, batch, feature: recipe.teacher_logits(batch.image),
    "task": lambda recipe, batch, feature: batch.task[:, None],  # type: ignore[attr-defined]
}
_STAGE = "stage:"
_LABEL_BYTES = 16  # of an image: its label and its index


class FeatureCollector(Callback):
    """Collects columns of numbers of the images that a Trainer validates or tests on, for every report that asks.

    A report finds or makes the collector of its Trainer with ``of``. It asks for columns in
    ``on_validation_epoch_start`` or ``on_test_epoch_start``, and reads them at the end of the epoch::

        def on_test_epoch_start(self, trainer, pl_module):
            FeatureCollector.of(trainer).collect("logits")

        def on_test_epoch_end(self, trainer, pl_module):
            logits, label, index = FeatureCollector.of(trainer).gather()["logits"]

    The network encodes each image once, in the recipe's own step. A column is computed once and joined from all devices
    once, whoever reads it. Columns are float32, or float64 for a recipe in float64. They stay on the device, and are
    dropped when the validation or test ends or fails.

    These columns have a name: ``feature``, what the step returned; ``logits`` of a classifier; ``teacher_logits`` of a
    student; ``task`` [N, 1] of a sequence of tasks; ``stage:0``, ``stage:1`` and so on, the features of a stage of the
    encoder (``recipes.nn.stage_features``). A report may add columns of its own.

    Args:
        max_bytes: largest size of all columns of one validation or test, over all devices, > 0. If all images need
            more, only those whose index is a multiple of n are collected, with the smallest n that suffices. They are
            the same on any number of devices. A warning says so, and ``subset`` names them.

    Attributes:
        every: n; 1 if all images are collected.

    Raises:
        ValueError: if ``max_bytes`` is not positive.
    """

    def __init__(self, max_bytes: int = 4 << 30) -> None:
        if max_bytes < 1:
            raise ValueError(f"max_bytes is {max_bytes}: it must be positive")
        self.max_bytes = max_bytes
        self.every = 1
        self._trainer: Any = None
        self._columns: dict[str, Column | None] = {}
        self._watching = ExitStack()  # the stages, during a step
        self._stages: list[Tensor] = []
        self._collector: Collector | None = None
        self._gathered: dict[str, Features] | None = None

    @classmethod
    def of(cls, trainer: Trainer) -> "FeatureCollector":
        """The collector of a Trainer, which is added to its callbacks if it has none."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        found = next((callback for callback in callbacks if isinstance(callback, cls)), None)
        if found is None:
            callbacks.append(found := cls())
        found._trainer = trainer
        return found

    def collect(self, name: str, column: Column | None = None) -> None:
        """Asks for a column of the validation or test that begins.

        Args:
            name: one of the columns above, or any other name with ``column``.
            column: computes a column of the report's own, without gradient and in the Trainer's precision.

        Raises:
            ValueError: if the name is unknown, or is that of another column already.
        """
        if column is None and name not in COLUMNS and not name.startswith(_STAGE):
            raise ValueError(f"column is {name!r}: it must be one of {', '.join(COLUMNS)}, {_STAGE}0, {_STAGE}1, ...")
        if self._columns.setdefault(name, column) != column:
            raise ValueError(f"column is {name!r}: another report collects something else under this name. Rename it.")

    def gather(self) -> dict[str, Features]:
        """The columns by name, each with labels and indices, ordered by loader and index, each image once.

        Joins those of all devices when it is called first: every device has to call this.
        """
        if self._gathered is None:
            collector = self._collector or self._new_collector()  # this device has no images
            self._gathered = collector.gather_columns()
        return self._gathered

    @property
    def subset(self) -> str | None:
        """Names the images that are collected; null if these are all."""
        return None if self.every == 1 else f"images whose index is a multiple of {self.every}"

    # Between the start and the end of a validation or test

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops what a validation or test that failed has left."""
        self._clear()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watches the stages of the encoder during the step, if a report reads them."""
        if any(name.startswith(_STAGE) for name in self._columns):
            encoder: Any = pl_module.encoder
            self._stages = self._watching.enter_context(watched_stages(encoder))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Computes the columns of a batch from what the step returned."""
        self._watching.close()
        if not self._columns:
            return
        feature = check_rows(outputs, batch)
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            columns = {name: self._compute(name, pl_module, batch, feature) for name in self._columns}
        if self._collector is None:
            self.every = self._fewer_images(columns)
            self._collector = self._new_collector()
        self._collector.add_columns(columns, batch, dataloader_idx)
        getattr(pl_module, "step_columns", {}).clear()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Drops the columns."""
        self._clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Drops the columns."""
        self._clear()

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_batch_end = on_validation_batch_end
    on_test_end = on_validation_end

    def _clear(self) -> None:
        self._watching.close()
        self._columns, self._stages = {}, []
        self._collector = self._gathered = None
        self.every = 1

    def _compute(self, name: str, recipe: LightningModule, batch: Batch, feature: Tensor) -> Tensor:
        if name.startswith(_STAGE):
            return self._stages[int(name.removeprefix(_STAGE))]
        if (column := self._columns[name]) is not None:
            return column(recipe, batch, feature)
        computed: dict[str, Tensor] = getattr(recipe, "step_columns", {})
        return computed[name] if name in computed else COLUMNS[name](recipe, batch, feature)

    def _new_collector(self) -> Collector:
        return Collector(self._trainer.lightning_module.device, self._dtype, self._columns, self.every)

    @property
    def _dtype(self) -> torch.dtype:
        return torch.promote_types(self._trainer.lightning_module.dtype, torch.float32)

    def _fewer_images(self, columns: dict[str, Tensor]) -> int:
        """The n of which every n-th image is collected, given the columns of a batch."""
        trainer = self._trainer
        loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
        loaders = loaders if isinstance(loaders, list | tuple) else [loaders]
        # an iterable dataset has no length: all of its images are collected
        images = sum(len(data) for loader in loaders if isinstance(data := getattr(loader, "dataset", None), Sized))
        numbers = sum(column.shape[1] for column in columns.values())
        needed = images * (numbers * self._dtype.itemsize + _LABEL_BYTES)
        every = max(1, math.ceil(needed / self.max_bytes))
        if every > 1:
            rank_zero_warn(
                f"reports would need {needed / 1e9:.1f} GB for {images:,} images and may take "
                f"{self.max_bytes / 1e9:.1f} GB: they measure one of every {every} images"
            )
        return every
