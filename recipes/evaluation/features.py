"""Features of images as the evaluation sees them: in eval mode, from all devices, in the order of the dataset."""

from collections.abc import Iterable, Mapping, Sized
from contextlib import ExitStack
from itertools import islice
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torchmetrics.utilities.distributed import gather_all_tensors

from datamodules import Batch
from datamodules.batch import is_filler
from recipes.evaluation.chunks import chunks
from recipes.nn import evaluating

_INDEX_BITS = 40  # of a number that orders images: the index below, the number of the loader above


class Features(NamedTuple):
    """Features of a set of images.

    Attributes:
        feature: float [N, F].
        label: int64 [N], -1 where unlabelled.
        index: int64 [N], the position of each image in its dataset.
    """

    feature: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index

    def labelled(self) -> "Features":
        """Those of the images that have a label; the same object if all have one."""
        known = self.label >= 0
        return self if known.all() else Features(*(x[known] for x in self))

    def to(self, device: torch.device | str) -> "Features":
        """The same on another device."""
        return Features(*(x.to(device) for x in self))


class Collector:
    """Collects features, and more if wanted, batch by batch, and joins those of all devices at the end.

    Args:
        device: device of the features.
        dtype: floating-point type in which they are kept.
        names: names of the columns that ``add`` gets for every batch, beside labels and indices.
        every: keeps the images whose index is a multiple of it, > 0; 1 keeps all.
        images: number of images that this device adds, if it is known. Its memory is then taken once.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        names: Iterable[str] = ("feature",),
        every: int = 1,
        images: int = 0,
    ) -> None:
        self.every = every
        # devices without an image take part in gathering
        self._columns = {name: _Rows(torch.empty(0, 0, device=device, dtype=dtype), images) for name in names}
        self._labels = [torch.empty(0, dtype=torch.int64, device=device)]
        self._orders = [torch.empty(0, dtype=torch.int64, device=device)]

    def add(self, feature: Tensor, batch: Batch, dataloader: int = 0) -> None:
        """Takes the features [B, F] of a batch of the loader number ``dataloader``.

        Images with several labels each count as unlabelled.

        Raises:
            ValueError: if ``feature`` is not one row for each image of the batch.
        """
        self.add_columns(dict.fromkeys(self._columns, feature), batch, dataloader)

    def add_columns(self, columns: Mapping[str, Tensor], batch: Batch, dataloader: int = 0) -> None:
        """Takes every column of a batch by its name, each [B, F] with an F of its own."""
        if is_filler(batch):
            return
        kept = slice(None) if self.every == 1 else batch.index % self.every == 0
        for name, rows in self._columns.items():
            rows.append(check_rows(columns[name], batch).detach()[kept])
        label = batch.label if batch.label.ndim == 1 else torch.full_like(batch.index, -1)
        self._labels.append(label[kept])
        self._orders.append((batch.index + (dataloader << _INDEX_BITS))[kept])

    def gather(self) -> Features:
        """The features of all devices, ordered by loader and index, each image once; the collector is empty then.

        Devices may have different numbers of images, or none. Every device has to call this.
        """
        (features,) = self.gather_columns().values()
        return features

    def gather_columns(self) -> dict[str, Features]:
        """The same for each column, by its name; all have the same labels and indices.

        If ``images`` was known, one device holds no column twice, and several hold no more than their shares of one
        column twice, and a second copy of what came out of order. Otherwise one column at a time is held twice.
        """
        label, order = join(self._labels), join(self._orders)
        count = len(order)
        order, row = torch.sort(order, stable=True)
        new = torch.ones_like(order, dtype=torch.bool)
        new[1:] = order[1:] != order[:-1]  # a sampler may repeat images so that all devices get the same number
        row = row[new]
        index = order[new] & ((1 << _INDEX_BITS) - 1)
        in_order = row.equal(torch.arange(count, device=row.device))  # as on one device: nothing is copied
        label = label if in_order else label[row]
        return {
            name: Features(_in_order(self._columns.pop(name).joined(), None if in_order else row, count), label, index)
            for name in list(self._columns)
        }


class _Rows:
    """Rows of numbers that come in parts, in one piece of memory if their number is known before."""

    def __init__(self, empty: Tensor, expected: int) -> None:
        self.parts = [empty]
        self.expected = expected
        self.used = 0  # rows of the last part

    def append(self, rows: Tensor) -> None:
        if not len(rows):
            return
        if self.used + len(rows) > len(self.parts[-1]):
            self.parts[-1] = self.parts[-1][: self.used]
            self.parts.append(self.parts[0].new_empty(max(self.expected, len(rows)), rows.shape[1]))
            self.expected = self.used = 0
        self.parts[-1][self.used : self.used + len(rows)] = rows
        self.used += len(rows)

    def joined(self) -> Tensor:
        """All rows; none are left here."""
        *parts, last = self.parts
        self.parts = []
        return _cat([*parts, last[: self.used]])


def check_rows(column: object, batch: Batch) -> Tensor:
    """Gives back what is to be collected of a batch.

    Raises:
        ValueError: if it is not one row for each image.
    """
    if isinstance(column, Tensor) and column.ndim == 2 and len(column) == len(batch.index):
        return column
    given = list(column.shape) if isinstance(column, Tensor) else type(column).__name__
    raise ValueError(
        f"validation_step and test_step must return the features of the batch as a tensor of shape "
        f"[{len(batch.index)}, F]; got {given}"
    )


def forward(encoder: nn.Module, image: Tensor, trainer: Trainer) -> Tensor:
    """Maps images [B, C, H, W] to features [B, F] in the Trainer's precision, without gradients."""
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        return encoder(image)


def extract(
    encoders: Mapping[str, nn.Module],
    loader: Iterable[Batch],
    trainer: Trainer,
    dtype: torch.dtype = torch.float32,
    images: int | None = None,
) -> dict[str, Features]:
    """Takes the features of the images of a loader, in eval mode and in the Trainer's precision.

    The encoders come back in the mode they had, and random number generators in their state. Under ``fast_dev_run``
    only that many batches are read. Every device has to call this, with its own share of the images.

    Args:
        encoders: each maps images [B, C, H, W] to features [B, F], on the Trainer's device; a recipe does.
        loader: gives Batches.
        trainer: whose device and precision are used.
        dtype: that the features are kept in.
        images: number of images that the loader gives on this device; None reads it from a ``DataLoader``, if possible.

    Returns:
        The features that each encoder gives for the images of all devices.
    """
    limit = int(trainer.fast_dev_run)  # type: ignore[attr-defined]
    if images is None:
        images = _images_of(loader)
    collector = Collector(trainer.strategy.root_device, dtype, encoders, images=0 if limit else images)
    with ExitStack() as stack:
        stack.enter_context(isolate_rng())  # an iterator over a DataLoader draws a seed
        for encoder in encoders.values():
            stack.enter_context(evaluating(encoder))
        for batch in islice(loader, limit or None):
            batch = trainer.strategy.batch_to_device(batch)
            collector.add_columns(
                {name: forward(encoder, batch.image, trainer) for name, encoder in encoders.items()}, batch
            )
    return collector.gather_columns()


def _images_of(loader: object) -> int:
    sampler = getattr(loader, "sampler", None)
    return len(sampler) if isinstance(sampler, Sized) else 0


def join(parts: list[Tensor]) -> Tensor:
    """Joins tensors [n, ...] of all devices to one, in rank order; each device gives at least one, which may be empty.

    Every device has to call this.
    """
    joined = _cat(parts)
    return _cat(gather_all_tensors(joined)) if _are_several() else joined


def _in_order(column: Tensor, row: Tensor | None, count: int) -> Tensor:
    """Rows of all devices in the order ``row``, given this device's rows; None leaves the ``count`` rows as they are.

    Devices send chunks, so that beside the result and the shares no more than a chunk is in memory.
    """
    if not _are_several():
        return column if row is None else column[row]
    shapes = torch.stack(gather_all_tensors(torch.tensor(column.shape, device=column.device))).tolist()
    width, most = max(shape[1] for shape in shapes), max(shape[0] for shape in shapes)
    place = torch.full((count,), -1, device=column.device)  # -1: a repeated image
    row = torch.arange(count, device=column.device) if row is None else row
    place[row] = torch.arange(len(row), device=column.device)
    places = place.split([shape[0] for shape in shapes])
    whole = column.new_empty(len(row), width)
    column = column if len(column) else column.new_empty(0, width)
    for rows in chunks(most, width * len(shapes), column.dtype):
        for part, to in zip(gather_all_tensors(column[rows]), places):
            known = to[rows] >= 0
            whole[to[rows][known]] = part[known]
    return whole


def _cat(parts: list[Tensor]) -> Tensor:
    parts = [part for part in parts if len(part)] or parts[:1]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _are_several() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
