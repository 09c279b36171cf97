"""Handwritten digits that come with scikit-learn."""

import functools
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from datamodules.base import ImageDataModule, Splits
from datamodules.loading.dataset import ImagesInMemory
from datamodules.loading.split import split
from datamodules.reading import Reading

_NATIVE = 8  # pixels
_NAMES = tuple("0123456789")
_TEST, _VAL = 360, 180  # 20 % and 10 % of 1,797; 1,257 are left to train on


class Digits(ImageDataModule):
    """1,797 handwritten digits of 8×8 grey pixels that come with scikit-learn, without a download.

    They are the test part of Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998, UCI). 1,257 are for
    training, 180 for validation and 360 for testing, with the classes in proportion; the split is always the same.

    Args:
        size: height and width of the images in pixels, >= 8. If null, uses that of a trained network, otherwise 16.
        mode: way to reach ``size``: ``resize`` enlarges the digits (bilinear), ``pad`` puts black around their 8×8
            pixels.
        Other arguments: see ``ImageDataModule``.

    Raises:
        ValueError: if ``size`` is below 8.
    """

    reading_options: ClassVar = {"image_size": "size"}
    usual_reading = Reading(16)

    def __init__(
        self,
        size: int | None = None,
        mode: Literal["resize", "pad"] = "resize",
        batch_size: int = 256,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        _check_size(size)
        if mode not in ("resize", "pad"):
            raise ValueError(f"mode is {mode!r}: it must be 'resize' or 'pad'")
        self._stated = Reading(size)
        self.mode = mode

    @property
    def size(self) -> int:
        """Height and width of the images in pixels."""
        return self._chosen.image_size or _NATIVE

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(_NAMES)

    def load(self) -> Splits:
        """Reads the digits from scikit-learn."""
        _check_size(self.size)
        image, label = _digits()
        if self.mode == "resize":
            image = functional.interpolate(image, size=(self.size, self.size), mode="bilinear", antialias=True)
        else:
            before = (self.size - _NATIVE) // 2
            after = self.size - _NATIVE - before
            image = functional.pad(image, (before, after, before, after))
        image = image.round().to(torch.uint8)
        test, val, train = (ImagesInMemory(image, label, rows) for rows in split(label, [_TEST, _VAL]))
        return Splits(_NAMES, train, val, test)


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    """The images [1797, 1, 8, 8], float64 in 0..255, and their labels, read once in a process. Nobody changes them."""
    from sklearn.datasets import load_digits  # here, because importing scikit-learn takes a second

    digits = load_digits()
    image = torch.from_numpy(digits.images).unsqueeze(1) * (255 / 16)  # its pixels are 0..16
    return image, torch.from_numpy(digits.target).to(torch.int64)


def _check_size(size: int | None) -> None:
    if size is not None and size < _NATIVE:
        raise ValueError(f"size is {size}: the digits have {_NATIVE}x{_NATIVE} pixels, so it must be at least that")
