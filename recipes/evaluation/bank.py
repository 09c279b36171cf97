"""Features of the labelled images that others are classified by. Each device holds a share of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from datamodules import Batch
from datamodules.loading.processes import are_several
from recipes.evaluation import chunks
from recipes.evaluation.features import Features, collect, forward
from recipes.nn import evaluating

_HALF = torch.bfloat16, torch.float16


@dataclass(frozen=True)
class Bank:
    """Features of N labelled images, of which each device holds a share.

    If several devices share the images, every one of them has to call the methods, with arguments of the same shapes.

    Attributes:
        feature: float [n, F], of the images of this device; half precision is widened where it is read.
        row: int64 [n], which of the N images these are.
        label: int64 [N], of all images, in the order of the dataset.
        index: int64 [N], positions of all images in their dataset.
        devices: number of devices that share the images. With 1, this device has all of them, in order.
    """

    feature: Tensor
    row: Tensor
    label: Tensor
    index: Tensor
    devices: int = 1

    @classmethod
    def of(cls, features: Union[Features, "Bank"]) -> "Bank":
        """A bank that this device has to itself; a ``Bank`` stays as it is."""
        if isinstance(features, Bank):
            return features
        row = torch.arange(len(features.label), device=features.label.device)
        return cls(features.feature, row, features.label, features.index)

    @property
    def dtype(self) -> torch.dtype:
        """The type that is computed in: float32 or wider."""
        return torch.promote_types(self.feature.dtype, torch.float32)

    @property
    def rank(self) -> int:
        """The number of this device among those that share the images."""
        return torch.distributed.get_rank() if self.devices > 1 else 0

    def take(self, rows: Tensor) -> Tensor:
        """The features of images ``rows`` [...] of all devices, [..., F]; the rows are the same on every device."""
        if self.devices == 1:
            return self.feature[rows].to(self.dtype)
        place = self.row.new_full((len(self.label),), -1)
        place[self.row] = torch.arange(len(self.row), device=place.device)
        place = place[rows]
        known = place >= 0
        taken = self.feature.new_zeros(*rows.shape, self.feature.shape[1], dtype=self.dtype)
        taken[known] = self.feature[place[known]].to(self.dtype)
        return self.total(taken)  # only one device has an image: the sum is exact

    def total(self, part: Tensor) -> Tensor:
        """Replaces each device's part of a sum by the sum, and returns it."""
        if self.devices > 1:
            torch.distributed.all_reduce(part)
        return part

    def gather(self, part: Tensor) -> list[Tensor]:
        """The parts of all devices."""
        if self.devices == 1:
            return [part]
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.devices)]
        torch.distributed.all_gather(parts, part)
        return parts

    def lead(self, *values: Tensor) -> None:
        """Replaces the values of every device by those of the first."""
        if self.devices > 1:
            for value in values:
                torch.distributed.broadcast(value, 0)

    def is_finite(self) -> bool:
        """Whether all features are finite numbers."""
        wrong = torch.zeros((), dtype=torch.int64, device=self.label.device)
        if self.feature.numel():
            low, high = self.feature.aminmax()  # without a mask of all numbers
            wrong += ~(low.isfinite() & high.isfinite())
        return not self.total(wrong)

    def over_draws(
        self, draws: Tensor, at_once: int, images: int, classify: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        """Classifies M images by each of D draws from the bank; the draws are dealt over the devices.

        Args:
            draws: int64 [D, n], rows of the bank.
            at_once: number of draws that are given to ``classify`` together, > 0. It may not depend on the number of
                devices, or else the result would.
            images: M.
            classify: maps features [d, n, F] and labels [d, n] of d draws to classes int64 [d, M].

        Returns:
            The classes, int64 [D, M], on every device.
        """
        found = draws.new_zeros(len(draws), images)
        groups = list(torch.arange(len(draws)).split(at_once))
        for first in range(0, len(groups), self.devices):
            for number, group in enumerate(groups[first : first + self.devices]):
                feature = self.take(draws[group])
                if number == self.rank:
                    mine, own = group, feature
            if first + self.rank < len(groups):  # all devices at the same time
                found[mine] = classify(own, self.label[draws[mine]])
        return self.total(found)


def stored_types(
    encoders: Mapping[str, nn.Module], image_shape: Sequence[int], trainer: Trainer
) -> dict[str, torch.dtype]:
    """The type in which the features of each encoder are kept without a loss, given the shape [C, H, W] of an image.

    An encoder gives half precision under ``bf16-mixed`` and its like. All other features are float32.
    """
    image = torch.zeros(1, *image_shape, dtype=torch.uint8, device=trainer.strategy.root_device)
    types = {}
    for name, encoder in encoders.items():
        with isolate_rng(), evaluating(encoder):
            given = forward(encoder, image, trainer).dtype
        types[name] = given if given in _HALF else torch.float32
    return types


def extract_bank(
    encoders: Mapping[str, nn.Module],
    loader: Iterable[Batch],
    trainer: Trainer,
    dtype: torch.dtype | Mapping[str, torch.dtype] = torch.float32,
    images: int | None = None,
) -> dict[str, Bank]:
    """Takes the features of the labelled images of a loader as ``extract`` does; they stay on the device that has them.

    Features that fit in one chunk on all devices together are copied to every device, which is faster. Every device
    has to call this, with its own share of the images.

    Args:
        encoders: see ``extract``.
        loader: see ``extract``.
        trainer: see ``extract``.
        dtype: see ``extract``.
        images: see ``extract``.

    Returns:
        The bank of each encoder.
    """
    collector = collect(encoders, loader, trainer, dtype, images)
    if collector.total_bytes() > chunks.BYTES and are_several():
        devices = torch.distributed.get_world_size()
        return {name: Bank(*share, devices) for name, share in collector.share_columns().items()}
    return {name: Bank.of(features.labelled()) for name, features in collector.gather_columns().items()}
