from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """A batch of images, as every DataModule returns it.

    Attributes:
        image: uint8 [B, C, H, W], with C 1 (grey) or 3 (RGB).
        label: int64 [B], the class of each image; -1 where unlabelled.
        index: int64 [B], the position of each image in its dataset; -1 in the only batch of a device that has no image
            of an evaluation, see ``is_filler``.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks a batch for


def is_filler(batch: Batch) -> bool:
    """Whether a batch only keeps its device in step with devices that have images: its single image does not count."""
    return len(batch.index) == 1 and int(batch.index) < 0
