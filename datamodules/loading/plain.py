"""Makes Batches of what a plain DataLoader gives: pairs of images and labels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.batch import Batch

_FORMS = (
    "give Batch(image, label, index) of datamodules, pairs (image, label), images alone, or a DataModule such as "
    "datamodules.ImageFolder"
)


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
    """Checks that images are not normalised yet: recipes do that, after their augmentations.

    Raises:
        ValueError: if an image is float and not in [0, 1].
    """
    if image.is_floating_point() and len(image) and not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"the loader gives images from {float(image.min()):g} to {float(image.max()):g}: floats must be in [0, 1]. "
            "Leave out Normalize and its like, because recipes normalise after their augmentations"
        )
