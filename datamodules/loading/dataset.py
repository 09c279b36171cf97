"""Images that are fetched a whole batch at a time."""

import hashlib
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batch import Batch
from datamodules.sources.content import content_hashes
from datamodules.sources.decode import MAX_PIXELS, VERSION, ValueRange, decode_or_name

_CHUNK = 4096  # images that are read at a time


class ImageDataset(Dataset[Batch], ABC):
    """Images of one size with a label each.

    Attributes:
        label: int64 [N], -1 where unlabelled.
        in_memory: whether fetching costs no more than a copy.
    """

    label: Tensor
    in_memory: bool

    @abstractmethod
    def images(self, index: Tensor) -> Tensor:
        """Fetches the images at the positions ``index`` [B], as uint8 [B, C, H, W]."""

    def digest(self) -> str:
        """SHA-256 of all images in their order: what is computed for images in advance is kept under it."""
        whole = hashlib.sha256()
        for index in torch.arange(len(self)).split(_CHUNK):
            image = self.images(index)
            whole.update(f"{image.dtype} {list(image.shape)}".encode())
            whole.update(image.contiguous().view(torch.uint8).numpy().tobytes())
        return whole.hexdigest()

    def __len__(self) -> int:
        return len(self.label)

    def __getitems__(self, indices: list[int]) -> Batch:
        """Fetches a batch; -1 stands for no image, see ``is_filler``: any image without a label."""
        index = torch.tensor(indices, dtype=torch.int64)
        row = index.clamp(min=0)
        return Batch(self.images(row), self.label[row].where(index >= 0, -1), index)


class ImagesInMemory(ImageDataset):
    """Images in one tensor.

    Args:
        image: uint8 [M, C, H, W], or features [M, F] in their place; several datasets may share it.
        label: int64 [M], -1 where unlabelled.
        rows: int64 [N], which of the M images are in this dataset, in which order; none is all of them.
    """

    in_memory = True

    def __init__(self, image: Tensor, label: Tensor, rows: Tensor | None = None) -> None:
        self.image = image
        self.rows = torch.arange(len(image)) if rows is None else rows
        self.label = label[self.rows]

    def images(self, index: Tensor) -> Tensor:
        """Fetches the images at the positions ``index`` [B], as uint8 [B, C, H, W]."""
        return self.image.index_select(0, self.rows[index])


class ImageFiles(ImageDataset):
    """Images that are decoded when they are fetched.

    Args:
        paths: of the N files.
        label: int64 [N], -1 where unlabelled.
        image_size: height and width of the decoded images.
        channels: 1 (grey) or 3 (RGB).
        value_range: see ``decode``.
        max_pixels: see ``decode``.
    """

    in_memory = False

    def __init__(
        self,
        paths: list[Path],
        label: Tensor,
        image_size: int,
        channels: int,
        value_range: ValueRange | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.paths = np.array([str(path) for path in paths])  # one block: a list would be copied into every worker
        self.label = label
        self.image_size = image_size
        self.channels = channels
        self.value_range = value_range
        self.max_pixels = max_pixels

    def images(self, index: Tensor) -> Tensor:
        """Decodes the images at the positions ``index`` [B], as uint8 [B, C, H, W]."""
        decoding = self.image_size, self.channels, self.value_range, self.max_pixels
        return torch.from_numpy(np.stack([decode_or_name(Path(path), *decoding) for path in self.paths[index.numpy()]]))

    def digest(self) -> str:
        """SHA-256 of the content of the files, each of which is read, and of how they are decoded."""
        whole = hashlib.sha256(f"{VERSION} {self.image_size} {self.channels} {self.value_range}".encode())
        whole.update(content_hashes([Path(path) for path in self.paths]).tobytes())
        return whole.hexdigest()


class ImageSelection(ImageDataset):
    """Some images of another dataset, with labels of their own.

    Args:
        base: where the images are from.
        rows: int64 [N], their positions in it.
        label: int64 [N], -1 where unlabelled.
    """

    def __init__(self, base: ImageDataset, rows: Tensor, label: Tensor) -> None:
        self.base = base
        self.rows = rows
        self.label = label
        self.in_memory = base.in_memory

    def images(self, index: Tensor) -> Tensor:
        """Fetches the images at the positions ``index`` [B], as uint8 [B, C, H, W]."""
        return self.base.images(self.rows[index])

    def digest(self) -> str:
        """SHA-256 of that of the other dataset, and of which images are here."""
        return hashlib.sha256(self.base.digest().encode() + self.rows.numpy().tobytes()).hexdigest()
