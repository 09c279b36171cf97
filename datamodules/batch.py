from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of images, as every DataModule returns it.

    Attributes:
        image: uint8 [B, C, H, W], with C 1 (grey) or 3 (RGB).
        label: int64 [B], the class of each image; -1 where unlabelled.
        index: int64 [B], the position of each image in its dataset.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks a batch for
