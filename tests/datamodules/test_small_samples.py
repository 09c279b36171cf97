"""A run on a few batches trains and measures on a sample of all classes and tasks, whatever the DataModule."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

import datamodules
from datamodules import (
    Digits,
    ImageDataModule,
    ImageFolder,
    ImagesInMemory,
    SemiSupervised,
    Splits,
    Subset,
    TaskSequence,
)
from datamodules.loading.split import representative
from tests.helpers.training import quiet_trainer

BATCH = 20


class InClassOrder(ImageDataModule):
    """Images of ten classes, one class after the other, in every split; a tenth of them are of the last."""

    num_classes = 10

    def load(self):
        label = torch.arange(10).repeat_interleave(torch.tensor([30] * 9 + [3]))
        images = ImagesInMemory(torch.zeros(len(label), 1, 8, 8, dtype=torch.uint8), label)
        return Splits(tuple("abcdefghij"), images, images, images)


def folder(root):
    for split in ("train", "val", "test"):
        for name in "abcde":
            (root / split / name).mkdir(parents=True)
            for number in range(12):
                pixels = np.full((8, 8), number, dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{number}.png")
    return ImageFolder(root, image_size=8, batch_size=BATCH)


def tasks(**options):
    return TaskSequence(InClassOrder(), num_tasks=2, epochs_per_task=2, batch_size=BATCH, **options)


DATA = {
    "Digits": lambda root: Digits(size=8, batch_size=BATCH),
    "ImageFolder": folder,
    "Subset": lambda root: Subset(InClassOrder(), batch_size=BATCH),
    "SemiSupervised": lambda root: SemiSupervised(InClassOrder(), 10, labels_per_class=3, batch_size=BATCH),
    "TaskSequence": lambda root: tasks(),
    "TaskSequence, domain": lambda root: tasks(scenario="domain"),
    "in class order": lambda root: InClassOrder(BATCH),
}
STANDARD = {"CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "STL10", "SVHN"}  # download, and write load alone


class Recorder(LightningModule):
    """Notes which images, of which class and task, it is trained and measured on in each epoch."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained, self.measured = {}, {}

    def note(self, seen, epoch, batch):
        task = getattr(batch, "task", torch.zeros_like(batch.label))
        seen.setdefault(epoch, []).extend(zip(batch.index.tolist(), batch.label.tolist(), task.tolist(), strict=True))

    def training_step(self, batch, batch_idx):
        self.note(self.trained, self.current_epoch, batch)
        return self.weight.sum()

    def validation_step(self, batch, batch_idx):
        if not self.trainer.sanity_checking:
            self.note(self.measured, self.current_epoch, batch)

    def test_step(self, batch, batch_idx):
        self.note(self.measured, "test", batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def kinds(seen):
    return {(label, task) for _, label, task in seen if label >= 0}


def kinds_of(images, task=None):
    of = getattr(images, "task", torch.zeros_like(images.label))
    pairs = zip(images.label.tolist(), of.tolist(), strict=True)
    return {pair for pair in pairs if pair[0] >= 0 and task in (None, pair[1])}


def test_every_datamodule_is_covered():
    names = {name for name in datamodules.__all__ if issubclass(getattr(datamodules, name), ImageDataModule)}
    assert names == {name.partition(",")[0] for name in DATA if name[0].isupper()} | STANDARD | {"ImageDataModule"}
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader", "_train_sampler")
    for name in STANDARD:
        assert not set(loaders) & set(vars(getattr(datamodules, name))), name


@pytest.mark.filterwarnings("error:You requested to overfit")
@pytest.mark.parametrize("name", DATA)
def test_overfit_batches_repeats_one_sample_of_every_class_and_task(name, tmp_path):
    data, recorder = DATA[name](tmp_path), Recorder()
    sequence = isinstance(data, TaskSequence)
    quiet_trainer(overfit_batches=1, max_epochs=4, num_sanity_val_steps=0).fit(recorder, data)
    for epoch, seen in recorder.trained.items():
        task = epoch // 2 if sequence else None
        assert seen == recorder.trained[2 * task if sequence else 0]
        assert kinds(seen) == kinds_of(data.splits.train, task)
        assert len(seen) == BATCH
        assert recorder.measured[epoch] == recorder.measured[0]
        assert kinds(recorder.measured[epoch]) == kinds_of(data.splits.val)


@pytest.mark.parametrize("name", DATA)
def test_the_first_batch_of_a_limited_evaluation_stands_for_all_images(name, tmp_path):
    data, recorder = DATA[name](tmp_path), Recorder()
    quiet_trainer(limit_test_batches=1).test(recorder, data, verbose=False)
    assert kinds(recorder.measured["test"]) == kinds_of(data.splits.test)
    whole = Recorder()
    quiet_trainer().test(whole, data, verbose=False)
    assert [index for index, *_ in whole.measured["test"]] == list(range(len(data.splits.test)))


def test_a_representative_order_has_every_group_first_and_then_their_shares():
    group = torch.tensor([7] * 80 + [-1] * 16 + [2] * 4)
    order = representative(group)
    assert order.sort().values.tolist() == list(range(100))
    assert set(group[order[:3]].tolist()) == {7, -1, 2}
    for size in (25, 50, 75):
        counts = [(group[order[:size]] == each).sum().item() for each in (7, -1, 2)]
        assert counts == pytest.approx([0.8 * size, 0.16 * size, 0.04 * size], abs=1.5)
    assert order[:10].tolist() != sorted(order[:10].tolist())  # drawn, not the first of each
