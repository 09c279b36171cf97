"""The content of files decides what is computed again."""

import os

import numpy as np
import pytest
from PIL import Image

from datamodules import ImageDataset, ImageFolder, SemiSupervised, Subset, TaskSequence


def write(path, red, green=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), (red, green, 0), np.uint8)).save(path, format="BMP")  # of one size


@pytest.fixture
def root(tmp_path):
    """Twenty pictures of two classes."""
    for i in range(20):
        write(tmp_path / "pictures" / "ab"[i % 2] / f"{i:02}.bmp", i)
    return tmp_path / "pictures"


WRAPPERS = {
    "no wrapper": lambda data: data,
    "Subset": lambda data: Subset(data, per_class=5, batch_size=2),
    "SemiSupervised": lambda data: SemiSupervised(data, labels_per_class=2, batch_size=4, labelled_per_batch=2),
    "TaskSequence": lambda data: TaskSequence(data, num_tasks=2, batch_size=2),
}


def train(root, memory_limit, wrapper):
    data = ImageFolder(root, image_size=8, val_fraction=0, test_fraction=0.2, batch_size=2, memory_limit=memory_limit)
    data = WRAPPERS[wrapper](data)
    data.prepare_data()
    data.setup()
    return data.splits.train


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("memory_limit", [0, 10**9])
def test_a_picture_of_the_same_name_size_and_time_has_another_digest(memory_limit, wrapper, root):
    before = train(root, memory_limit, wrapper).digest()
    assert train(root, memory_limit, wrapper).digest() == before
    for path in root.rglob("*.bmp"):
        stat = path.stat()
        write(path, int(path.stem), green=1)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert path.stat().st_size == stat.st_size
    assert train(root, memory_limit, wrapper).digest() != before


def test_no_kind_of_dataset_is_forgotten(root):
    def kinds(dataset):
        yield type(dataset)
        for part in [getattr(dataset, "base", None), *getattr(dataset, "parts", ())]:
            if part is not None:
                yield from kinds(part)

    found = {kind for limit in (0, 10**9) for wrapper in WRAPPERS for kind in kinds(train(root, limit, wrapper))}
    known, more = set(), {ImageDataset}
    while more:
        known |= more
        more = {kind for each in more for kind in each.__subclasses__()}
    ours = {kind for kind in known if kind.__module__.startswith("datamodules")} - {ImageDataset}
    assert ours <= found


def test_pictures_with_another_value_range_have_another_digest(root):
    digests = set()
    for value_range in (None, (0, 10)):
        data = ImageFolder(root, image_size=8, memory_limit=0, value_range=value_range)
        data.setup()
        digests.add(data.splits.train.digest())
    assert len(digests) == 2
