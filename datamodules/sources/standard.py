"""Datasets that torchvision downloads and reads."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision import datasets

from datamodules.base import ImageDataModule, Splits
from datamodules.loading.dataset import ImagesInMemory
from datamodules.loading.split import check_fraction, split

_DIGITS = tuple("0123456789")


class StandardImages(ImageDataModule):
    """A dataset that torchvision downloads and reads. Subclasses fill in the table below and nothing else.

    Args:
        root: folder that holds the datasets. Missing files are downloaded into it.
        val_fraction: share of the labelled training images that is used for validation instead, in [0, 1). The classes
            are in proportion, and the selection is the same in every run.
        Other arguments: see ``ImageDataModule``.

    Raises:
        FileNotFoundError: if files are missing and cannot be downloaded.
        ValueError: if ``val_fraction`` is not in [0, 1).
    """

    reader: ClassVar[type[datasets.VisionDataset]]
    classes: ClassVar[int] = 10
    names: ClassVar[tuple[str, ...] | None] = None  # of the classes; none if the reader knows them
    train_split: ClassVar[dict[str, Any]] = {"train": True}
    test_split: ClassVar[dict[str, Any]] = {"train": False}
    to_download: ClassVar[tuple[str, ...]] = ("test_split",)  # any split brings the others with it, and this is smaller
    folder: ClassVar[str]  # under root
    files: ClassVar[str]  # in that folder
    hint: ClassVar[str] = ""

    def __init__(
        self,
        root: str | Path = "data",
        val_fraction: float = 0.1,
        batch_size: int = 256,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        check_fraction("val_fraction", val_fraction)
        self.root = Path(root).expanduser()
        self.val_fraction = val_fraction

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.classes

    def prepare_data(self) -> None:
        """Downloads the files that are missing."""
        for name in self.to_download:
            self._read(getattr(self, name), download=True)

    def load(self) -> Splits:
        """Reads the files."""
        data = self._read(self.train_split)
        image, label = _tensors(data)
        labelled = (label >= 0).nonzero().flatten()
        val, train = split(label[labelled], [round(self.val_fraction * len(labelled))])
        train = torch.cat([labelled[train], (label < 0).nonzero().flatten()])
        return Splits(
            tuple(self.names or data.classes),
            ImagesInMemory(image, label, train),
            ImagesInMemory(image, label, labelled[val]) if len(val) else None,
            ImagesInMemory(*_tensors(self._read(self.test_split))),
        )

    def _read(self, which: dict[str, Any], download: bool = False) -> Any:
        try:
            return self.reader(str(self.root), download=download, **which)
        except (RuntimeError, OSError) as error:  # torchvision's and urllib's
            what = "could not be downloaded" if download else "is not there"
            why = " ".join(str(error).split())
            raise FileNotFoundError(
                f"{type(self).__name__} {what} ({why}): put {self.files} into {self.root / self.folder}{self.hint}"
            ) from error


def _tensors(data: Any) -> tuple[Tensor, Tensor]:
    """Images, uint8 [N, C, H, W], and labels, int64 [N], of one of torchvision's datasets."""
    image = torch.from_numpy(np.asarray(data.data))
    if image.ndim == 3:  # [N, H, W], grey
        image = image.unsqueeze(1)
    elif image.shape[-1] == 3:  # [N, H, W, C]
        image = image.permute(0, 3, 1, 2)
    label = data.targets if hasattr(data, "targets") else data.labels
    return image.contiguous(), torch.as_tensor(label).to(torch.int64)


_IDX = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte"


class MNIST(StandardImages):
    """70,000 handwritten digits of 28×28 grey pixels (LeCun et al., 1998); 10,000 are for testing.

    Arguments: see ``StandardImages``.
    """

    reader = datasets.MNIST
    names = _DIGITS
    folder = "MNIST/raw"
    files = _IDX


class FashionMNIST(StandardImages):
    """70,000 images of clothes in ten classes, 28×28 grey pixels (Xiao et al., 2017, arXiv:1708.07747).

    10,000 are for testing.

    Arguments: see ``StandardImages``.
    """

    reader = datasets.FashionMNIST
    folder = "FashionMNIST/raw"
    files = _IDX
    hint = (
        "; Debian's package dataset-fashion-mnist installs them as .gz under /usr/share/datasets/fashion-mnist, "
        "to be unpacked with gunzip"
    )


class KMNIST(StandardImages):
    """70,000 cursive Japanese characters in ten classes, 28×28 grey pixels (Clanuwat et al., 2018, arXiv:1812.01718).

    10,000 are for testing.

    Arguments: see ``StandardImages``.
    """

    reader = datasets.KMNIST
    folder = "KMNIST/raw"
    files = _IDX


class CIFAR10(StandardImages):
    """60,000 images in ten classes, 32×32 RGB pixels (Krizhevsky, 2009); 10,000 are for testing.

    Arguments: see ``StandardImages``.
    """

    reader = datasets.CIFAR10
    folder = "cifar-10-batches-py"
    files = "the files of cifar-10-python.tar.gz"


class CIFAR100(StandardImages):
    """60,000 images in a hundred classes, 32×32 RGB pixels (Krizhevsky, 2009); 10,000 are for testing.

    Arguments: see ``StandardImages``.
    """

    reader = datasets.CIFAR100
    classes = 100
    folder = "cifar-100-python"
    files = "the files of cifar-100-python.tar.gz"


class SVHN(StandardImages):
    """99,289 house number digits from photographs, 32×32 RGB pixels (Netzer et al., 2011); 26,032 are for testing.

    Arguments: see ``StandardImages``.
    """

    reader = datasets.SVHN
    names = _DIGITS
    train_split: ClassVar[dict[str, Any]] = {"split": "train"}
    test_split: ClassVar[dict[str, Any]] = {"split": "test"}
    to_download = ("train_split", "test_split")
    folder = "."
    files = "train_32x32.mat and test_32x32.mat"


class STL10(StandardImages):
    """13,000 images in ten classes, 96×96 RGB pixels, and 100,000 unlabelled ones (Coates et al., 2011).

    5,000 are for training and 8,000 for testing. The unlabelled ones come from a broader distribution.

    Args:
        unlabelled: whether to add the 100,000 unlabelled images to the training images, with label -1 (2.8 GB of
            memory).
        Other arguments: see ``StandardImages``.
    """

    reader = datasets.STL10
    names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    test_split: ClassVar[dict[str, Any]] = {"split": "test"}
    folder = "stl10_binary"
    files = "the files of stl10_binary.tar.gz"

    def __init__(
        self,
        root: str | Path = "data",
        unlabelled: bool = False,
        val_fraction: float = 0.1,
        batch_size: int = 256,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(root, val_fraction, batch_size, num_workers)
        self.train_split = {"split": "train+unlabeled" if unlabelled else "train"}  # type: ignore[misc]
