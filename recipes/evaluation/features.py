"""Features of images as the evaluation sees them: in eval mode, from all devices, in the order of the dataset."""

from collections.abc import Iterable, Mapping, Sized
from contextlib import ExitStack
from itertools import islice
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from datamodules import Batch
from datamodules.batch import is_filler
from recipes.evaluation.rows import Rows, in_order, join, only
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
        dtype: floating-point type in which they are kept, for all columns or for each by its name.
        names: names of the columns that ``add`` gets for every batch, beside labels and indices.
        every: keeps the images whose index is a multiple of it, > 0; 1 keeps all.
        images: number of images that this device adds, if it is known. Its memory is then taken once.
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
        names: Iterable[str] = ("feature",),
        every: int = 1,
        images: int = 0,
    ) -> None:
        self.every = every
        types = dtype if isinstance(dtype, Mapping) else dict.fromkeys(names := list(names), dtype)
        # devices without an image take part in gathering
        self._columns = {name: Rows(torch.empty(0, 0, device=device, dtype=types[name]), images) for name in names}
        # in one piece too: what stays of each batch would keep the memory of the batch from being used again
        none = torch.empty(0, dtype=torch.int64, device=device)
        self._labels, self._orders = Rows(none, images), Rows(none, images)

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
        label, index, row, count = self._all_rows()
        ordered = row.equal(torch.arange(count, device=row.device))  # as on one device: nothing is copied
        return {
            name: Features(in_order(self._columns.pop(name).joined(), None if ordered else row, count), label, index)
            for name in list(self._columns)
        }

    def share_columns(self) -> dict[str, tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The labelled images of each column, by its name, each left on the device that has it, or on one of them.

        The collector is empty then. Every device has to call this.

        Returns:
            Of each column the features of this device [n, F], which of all N images these are [n], and labels and
            indices of all images in order [N]: see ``Bank``.
        """
        ours = len(self._orders)
        first = sum(self._of_all(ours)[: torch.distributed.get_rank()])
        label, index, row, count = self._all_rows()
        known = label >= 0
        place = torch.full((count,), -1, device=row.device)  # -1: a repeated image, or one without a label
        place[row[known]] = torch.arange(int(known.sum()), device=row.device)
        place = place[first : first + ours]
        kept = place >= 0
        shares = {}
        for name in list(self._columns):
            feature = only(self._columns.pop(name).joined(), kept)
            width = max(self._of_all(feature.shape[1]))  # a device without images does not know it
            feature = feature if feature.shape[1] else feature.new_empty(0, width)
            shares[name] = feature, place[kept], label[known], index[known]
        return shares

    def total_bytes(self) -> int:
        """The size of all columns on all devices together. Every device has to call this."""
        return sum(self._of_all(sum(rows.nbytes for rows in self._columns.values())))

    def _of_all(self, number: int) -> list[int]:
        """A number of each device, by rank."""
        device = self._labels.parts[0].device
        return [int(each) for each in join([torch.tensor([number], device=device)])]

    def _all_rows(self) -> tuple[Tensor, Tensor, Tensor, int]:
        """Labels and indices of all devices, each image once, in order; its row of all ``count`` rows in rank order."""
        label, order = join([self._labels.joined()]), join([self._orders.joined()])
        count = len(order)
        order, row = torch.sort(order, stable=True)
        new = torch.ones_like(order, dtype=torch.bool)
        new[1:] = order[1:] != order[:-1]  # a sampler may repeat images so that all devices get the same number
        row = row[new]
        return label[row], order[new] & ((1 << _INDEX_BITS) - 1), row, count


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
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    images: int | None = None,
) -> dict[str, Features]:
    """Takes the features of the images of a loader, in eval mode and in the Trainer's precision.

    The encoders come back in the mode they had, and random number generators in their state. Under ``fast_dev_run``
    only that many batches are read. Every device has to call this, with its own share of the images.

    Args:
        encoders: each maps images [B, C, H, W] to features [B, F], on the Trainer's device; a recipe does.
        loader: gives Batches.
        trainer: whose device and precision are used.
        dtype: that the features are kept in, of all encoders or of each by its name.
        images: number of images that the loader gives on this device; None reads it from a ``DataLoader``, if possible.

    Returns:
        The features that each encoder gives for the images of all devices.
    """
    return collect(encoders, loader, trainer, dtype, images).gather_columns()


def collect(
    encoders: Mapping[str, nn.Module],
    loader: Iterable[Batch],
    trainer: Trainer,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    images: int | None = None,
) -> Collector:
    """Takes the features as ``extract`` does, and leaves those of each device in a collector, on the device."""
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
    return collector


def _images_of(loader: object) -> int:
    sampler = getattr(loader, "sampler", None)
    return len(sampler) if isinstance(sampler, Sized) else 0
