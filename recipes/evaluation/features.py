"""Features of images as the evaluation sees them: in eval mode, from all devices, in the order of the dataset."""

from collections.abc import Iterable, Mapping
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
    """

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        names: Iterable[str] = ("feature",),
        every: int = 1,
    ) -> None:
        self.every = every
        # devices without an image take part in gathering
        self._columns = {name: [torch.empty(0, 0, device=device, dtype=dtype)] for name in names}
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
        for name, parts in self._columns.items():
            parts.append(check_rows(columns[name], batch).detach().to(parts[0].dtype)[kept])
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

        One column at a time is held twice, once more where devices share or repeat images.
        """
        label, order = join(self._labels), join(self._orders)
        order, row = torch.sort(order, stable=True)
        new = torch.ones_like(order, dtype=torch.bool)
        new[1:] = order[1:] != order[:-1]  # a sampler may repeat images so that all devices get the same number
        row = row[new]
        index = order[new] & ((1 << _INDEX_BITS) - 1)
        in_order = row.equal(torch.arange(len(label), device=row.device))  # as on one device: nothing is copied

        def sorted_rows(x: Tensor) -> Tensor:
            return x if in_order else x[row]

        label = sorted_rows(label)
        return {
            name: Features(sorted_rows(join(self._columns.pop(name))), label, index) for name in list(self._columns)
        }


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
    encoders: Mapping[str, nn.Module], loader: Iterable[Batch], trainer: Trainer, dtype: torch.dtype = torch.float32
) -> dict[str, Features]:
    """Takes the features of the images of a loader, in eval mode and in the Trainer's precision.

    The encoders come back in the mode they had, and random number generators in their state. Under ``fast_dev_run``
    only that many batches are read. Every device has to call this, with its own share of the images.

    Args:
        encoders: each maps images [B, C, H, W] to features [B, F], on the Trainer's device; a recipe does.
        loader: gives Batches.
        trainer: whose device and precision are used.
        dtype: that the features are kept in.

    Returns:
        The features that each encoder gives for the images of all devices.
    """
    collector = Collector(trainer.strategy.root_device, dtype, encoders)
    with ExitStack() as stack:
        stack.enter_context(isolate_rng())  # an iterator over a DataLoader draws a seed
        for encoder in encoders.values():
            stack.enter_context(evaluating(encoder))
        limit = int(trainer.fast_dev_run)  # type: ignore[attr-defined]
        for batch in islice(loader, limit or None):
            batch = trainer.strategy.batch_to_device(batch)
            collector.add_columns(
                {name: forward(encoder, batch.image, trainer) for name, encoder in encoders.items()}, batch
            )
    return collector.gather_columns()


def join(parts: list[Tensor]) -> Tensor:
    """Joins tensors [n, ...] of all devices to one, in rank order; each device gives at least one, which may be empty.

    Every device has to call this.
    """
    parts = [part for part in parts if len(part)] or parts[:1]
    joined = torch.cat(parts)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return joined
    everyones = gather_all_tensors(joined)
    return torch.cat([part for part in everyones if len(part)] or everyones[:1])
