"""Makes Batches of what a plain DataLoader gives: pairs of images and labels."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from datamodules.batch import Batch

_FORMS = (
    "give Batch(image, label, index) of datamodules, pairs (image, label), images alone, or a DataModule such as "
    "datamodules.ImageFolder"
)


class PlainBatches:
    """Makes and checks the Batches of a run; images are counted where the loader gives no index."""

    def __init__(self) -> None:
        self._counted: dict[tuple[Any, ...], int] = {}  # images, by loader and epoch

    def make(self, given: Any, trainer: Trainer, dataloader_idx: int) -> tuple[Batch, bool]:
        """Makes a Batch, and checks the range of its images.

        Every batch in the memory of the CPU is checked. Of a loader that gives batches on another device, only the
        first batch of an epoch is, because the check waits for the device.

        Args:
            given: a Batch, or what ``as_batch`` takes.
            trainer: Trainer of the run.
            dataloader_idx: number of the loader.

        Returns:
            The batch, and whether it is the first of the loader in this epoch.

        Raises:
            TypeError: if it is something else.
            ValueError: if images or labels have another shape, type or range.
        """
        time = trainer.current_epoch if trainer.training else trainer.global_step
        place = (trainer.state.stage, time, dataloader_idx)
        first = self._counted.get(place, 0)
        if hasattr(given, "image") and hasattr(given, "index"):
            made = given
        else:
            made = as_batch(given, trainer.global_rank + first * trainer.world_size, trainer.world_size)
        if first == 0 or made.image.device.type == "cpu":
            check_range(made.image)
        self._counted[place] = first + len(made.image)
        return made, first == 0


def as_batch(given: Any, first: int, step: int = 1) -> Batch:
    """Makes a Batch of images with labels, of images alone, or of images with labels and indices.

    Args:
        given: image [B, C, H, W], uint8 or float in [0, 1], with label int64 [B] and index int64 [B] or without.
        first: index of the first image, where none is given.
        step: distance between the indices, where none are given.

    Raises:
        TypeError: if it is something else.
        ValueError: if images or labels have another shape, type or range.
    """
    parts: Sequence[Any] = given if isinstance(given, list | tuple) else [given]
    if not 1 <= len(parts) <= 3 or not all(isinstance(part, Tensor) for part in parts):
        names = [type(part).__name__ for part in parts]
        held = f" of {', '.join(names)}" if isinstance(given, list | tuple) else ""
        raise TypeError(f"the loader gives a {type(given).__name__}{held}: {_FORMS}")
    image, *others = parts
    if image.ndim != 4 or image.shape[1] not in (1, 3):
        raise ValueError(f"the loader gives images {list(image.shape)}: they must be [B, C, H, W] with C 1 or 3")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"the loader gives images of type {image.dtype}: they must be uint8, or float in [0, 1]")
    count = len(image)
    label = others[0] if others else torch.full((count,), -1)
    index = others[1] if len(others) == 2 else first + step * torch.arange(count)
    for name, numbers in {"labels": label, "indices": index}.items():
        if numbers.shape != (count,) or numbers.is_floating_point():
            raise ValueError(
                f"the loader gives {name} {list(numbers.shape)} of {numbers.dtype}: they must be integers [{count}]"
            )
    return Batch(image, label.long(), index.long())


def check_range(image: Tensor) -> None:
    """Checks that images are in their range and not normalised yet: recipes do that, after their augmentations.

    Args:
        image: [B, C, H, W]; cached features [B, F] pass.

    Raises:
        ValueError: if an image is float and not in [0, 1].
    """
    if not image.is_floating_point() or image.ndim != 4 or not len(image):
        return
    low, high = (float(end) for end in image.aminmax())
    if not (low >= 0 and high <= 1):
        remedy = "Leave out Normalize and its like, because recipes normalise after their augmentations"
        if low >= 0 and high <= 255:
            remedy = "Divide by 255, or give uint8"
        raise ValueError(f"the images are from {low:g} to {high:g}: floats must be in [0, 1]. {remedy}")
