import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat

from datamodules import CIFAR10, CIFAR100, KMNIST, MNIST, STL10, SVHN, FashionMNIST

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of the package dataset-fashion-mnist
RANDOM = np.random.RandomState(0)


def write_idx(path, array):
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    path.write_bytes(header + array.tobytes())


def write_mnist(root, name):
    """40 and 20 images in the files that MNIST is published in."""
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    written = {}
    for split, count in (("train", 40), ("t10k", 20)):
        image = RANDOM.randint(0, 256, (count, 28, 28)).astype(np.uint8)
        label = (np.arange(count) % 10).astype(np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte", image)
        write_idx(folder / f"{split}-labels-idx1-ubyte", label)
        written[split] = image[:, None], label
    return written["train"], written["t10k"]


def write_cifar(root, folder, files, label_key, meta):
    """20 images a file, as pickles of rows of 3,072 bytes."""
    (root / folder).mkdir()
    images, labels = [], []
    for name in files:
        image = RANDOM.randint(0, 256, (20, 3, 32, 32)).astype(np.uint8)
        label = list(range(10)) * 2
        with (root / folder / name).open("wb") as file:
            pickle.dump({"data": image.reshape(20, -1), label_key: label}, file)
        images.append(image)
        labels += label
    with (root / folder / meta[0]).open("wb") as file:
        pickle.dump({meta[1]: [f"class {i}" for i in range(10)]}, file)
    return (np.concatenate(images[:-1]), labels[:-20]), (images[-1], labels[-20:])


def write_svhn(root):
    written = []
    for split, count in (("train", 40), ("test", 20)):
        image = RANDOM.randint(0, 256, (count, 3, 32, 32)).astype(np.uint8)
        label = np.arange(count) % 10
        stored = np.where(label == 0, 10, label)[:, None].astype(np.uint8)  # its files call the digit 0 ten
        savemat(root / f"{split}_32x32.mat", {"X": image.transpose(2, 3, 1, 0), "y": stored})
        written.append((image, label))
    return written


def write_stl10(root):
    folder = root / "stl10_binary"
    folder.mkdir()
    written = {}
    for split, count in (("train", 40), ("test", 20), ("unlabeled", 5)):
        image = RANDOM.randint(0, 256, (count, 3, 96, 96)).astype(np.uint8)
        (folder / f"{split}_X.bin").write_bytes(image.transpose(0, 1, 3, 2).tobytes())  # column after column
        label = (np.arange(count) % 10).astype(np.uint8)
        if split != "unlabeled":
            (folder / f"{split}_y.bin").write_bytes((label + 1).tobytes())
        written[split] = image, label
    return written


@pytest.fixture
def any_checksum(monkeypatch):
    """torchvision knows the checksums of the published files; ours are smaller. Nothing else of it is replaced."""
    for module in ("cifar", "svhn", "stl10", "utils"):
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_integrity", lambda path, md5=None: Path(path).exists()
        )


def check(data, train, test):
    """The DataModule holds what was written, and its validation images are every fourth of the training images."""
    data.prepare_data()  # finds everything there
    data.setup()
    splits = data.splits
    assert sorted(splits.train.rows.tolist() + splits.val.rows.tolist()) == list(range(len(train[1])))
    assert splits.val.label.bincount().tolist() == [len(train[1]) // 40] * 10
    for part, (image, label) in ((splits.train, train), (splits.val, train), (splits.test, test)):
        batch = part.__getitems__(list(range(len(part))))
        assert batch.image.equal(torch.from_numpy(image)[part.rows])
        assert batch.label.equal(torch.as_tensor(label).long()[part.rows])
    assert data.num_classes == 10
    assert data.image_shape == train[0].shape[1:]


@pytest.mark.parametrize("cls", [MNIST, KMNIST, FashionMNIST])
def test_the_mnist_family_reads_its_files(cls, tmp_path):
    train, test = write_mnist(tmp_path, cls.__name__)
    check(cls(tmp_path, val_fraction=0.25), train, test)


def test_cifar10_reads_its_files(tmp_path, any_checksum):
    files = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    train, test = write_cifar(tmp_path, "cifar-10-batches-py", files, "labels", ("batches.meta", "label_names"))
    data = CIFAR10(tmp_path, val_fraction=0.2)
    check(data, train, test)
    assert data.class_names[3] == "class 3"


def test_cifar100_reads_its_files(tmp_path, any_checksum):
    train, test = write_cifar(
        tmp_path, "cifar-100-python", ["train", "test"], "fine_labels", ("meta", "fine_label_names")
    )
    data = CIFAR100(tmp_path, val_fraction=0)
    data.setup()
    assert data.splits.val is None
    assert data.splits.train.images(torch.arange(20)).equal(torch.from_numpy(train[0]))
    assert data.splits.test.images(torch.arange(20)).equal(torch.from_numpy(test[0]))


def test_svhn_reads_its_files(tmp_path, any_checksum):
    check(SVHN(tmp_path, val_fraction=0.25), *write_svhn(tmp_path))


def test_stl10_reads_its_files_and_adds_unlabelled_images_on_demand(tmp_path, any_checksum):
    written = write_stl10(tmp_path)
    check(STL10(tmp_path, val_fraction=0.25), written["train"], written["test"])
    data = STL10(tmp_path, unlabelled=True, val_fraction=0.25, batch_size=4)
    data.setup()
    assert data.splits.train.label[-5:].tolist() == [-1] * 5
    assert (data.splits.train.label[:-5] >= 0).all()
    assert data.splits.train.images(torch.arange(30, 35)).equal(torch.from_numpy(written["unlabeled"][0]))
    assert sum(len(batch.label) for batch in data.bank_dataloader()) == 30
    assert len(data.splits.val) == 10


@pytest.mark.parametrize(
    ("cls", "where"),
    [(MNIST, "MNIST/raw"), (FashionMNIST, "FashionMNIST/raw"), (CIFAR10, "cifar-10-batches-py"), (SVHN, "test_32x32")],
)
def test_missing_files_are_an_error_that_says_where_they_belong(cls, where, tmp_path):
    with pytest.raises(FileNotFoundError, match=where) as caught:
        cls(tmp_path).setup()
    assert str(tmp_path) in str(caught.value)
    assert "is not there" in str(caught.value)


def test_a_failed_download_says_where_the_files_belong_and_that_debian_has_them(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.FashionMNIST.mirrors", ["http://127.0.0.1:9/"])  # nothing listens there
    with pytest.raises(
        FileNotFoundError, match="could not be downloaded .*FashionMNIST/raw.* dataset-fashion-mnist"
    ) as caught:
        FashionMNIST(tmp_path).prepare_data()
    assert "\n" not in str(caught.value)


def test_a_fraction_out_of_range_is_an_error():
    with pytest.raises(ValueError, match="val_fraction is 1"):
        MNIST(val_fraction=1)


@pytest.mark.slow
@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_fashion_mnist_from_debians_package(tmp_path):
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for path in DEBIAN.glob("*.gz"):
        (folder / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    data = FashionMNIST(tmp_path)
    data.prepare_data()
    data.setup()
    parts = (data.splits.train, data.splits.val, data.splits.test)
    assert [len(part) for part in parts] == [54_000, 6_000, 10_000]
    assert [part.label.bincount().unique().tolist() for part in parts] == [[5400], [600], [1000]]
    assert data.mean == pytest.approx((0.2860,), abs=5e-4)  # 0.2860 and 0.3530 are those of all 60,000 images
    assert data.std == pytest.approx((0.3530,), abs=5e-4)
    assert data.class_names[9] == "Ankle boot"
    batch = data.splits.test.__getitems__([0])
    assert batch.label.item() == 9  # the first test image is a boot
