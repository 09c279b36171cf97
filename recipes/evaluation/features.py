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
        """Those of the images that have a label."""
        return Features(*(x[self.label >= 0] for x in self))

    def to(self, device: torch.device | str) -> "Features":
        """The same on another device."""
        return Features(*(x.to(device) for x in self))


class Collector:
    """Collects features batch by batch, and joins those of all devices at the end.

    Args:
        device: where the features are.
        dtype: that they are kept in.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32) -> None:
        self._features = [torch.empty(0, 0, device=device, dtype=dtype)]
        self._labels = [torch.empty(0, dtype=torch.int64, device=device)]
        self._orders = [torch.empty(0, dtype=torch.int64, device=device)]

    def add(self, feature: Tensor, batch: Batch, dataloader: int = 0) -> None:
        """Takes the features [B, F] of a batch of the loader number ``dataloader``.

        Images with several labels each count as unlabelled.

        Raises:
            ValueError: if ``feature`` is not one row for each image of the batch.
        """
        if not isinstance(feature, Tensor) or feature.ndim != 2 or len(feature) != len(batch.index):
            given = list(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
            raise ValueError(
                f"callbacks measure what validation_step and test_step return: it has to be the features of the batch, "
                f"[{len(batch.index)}, F], and is {given}"
            )
        label = batch.label if batch.label.ndim == 1 else torch.full_like(batch.index, -1)
        self._features.append(feature.detach().to(self._features[0].dtype))
        self._labels.append(label)
        self._orders.append(batch.index + (dataloader << _INDEX_BITS))

    def gather(self) -> Features:
        """The features of all devices, ordered by loader and index, each image once.

        Devices may have different numbers of images, or none. Every device has to call this.
        """
        feature, label, order = (join(x) for x in (self._features, self._labels, self._orders))
        order, row = torch.sort(order, stable=True)
        new = torch.ones_like(order, dtype=torch.bool)
        new[1:] = order[1:] != order[:-1]  # a sampler may repeat images so that all devices get the same number
        row = row[new]
        return Features(feature[row], label[row], order[new] & ((1 << _INDEX_BITS) - 1))


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
    collectors = {name: Collector(trainer.strategy.root_device, dtype) for name in encoders}
    with ExitStack() as stack:
        stack.enter_context(isolate_rng())  # an iterator over a DataLoader draws a seed
        for encoder in encoders.values():
            stack.enter_context(evaluating(encoder))
        limit = int(trainer.fast_dev_run)  # type: ignore[attr-defined]
        for batch in islice(loader, limit or None):
            batch = trainer.strategy.batch_to_device(batch)
            for name, encoder in encoders.items():
                collectors[name].add(forward(encoder, batch.image, trainer), batch)
    return {name: collector.gather() for name, collector in collectors.items()}


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
