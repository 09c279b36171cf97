"""What test_shared_start.py runs in one process and in two."""

import contextlib
from pathlib import Path

import torch
from lightning.pytorch import LightningModule

from datamodules import ImageDataModule, ImageDataset, ImageFolder, Splits, Subset
from datamodules.sources import decode, shared
from tests.helpers.training import quiet_trainer


class Reader(LightningModule):
    """Takes a step, and notes whether the images are mapped from a file, and which names of files there are."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {}

    def on_fit_start(self):
        self.seen["asked"] = [*getattr(self.trainer.datamodule.splits.train, "asked", ())]

    def training_step(self, batch, batch_idx):
        self.seen["mapped"] = "/images-" in Path("/proc/self/maps").read_text()
        self.seen["files"] = [path.name for folder in shared._FOLDERS for path in folder.glob("images-*")]
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Slow(ImageDataset):
    """Images that have to be decoded; each is as bright as its position."""

    in_memory = False

    def __init__(self):
        self.label = torch.zeros(41, dtype=torch.int64)
        self.asked = []

    def images(self, index):
        self.asked += index.tolist()
        return index.to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)


class SlowData(ImageDataModule):
    def load(self):
        return Splits(("a",), Slow())


def fit(data, processes):
    reader = Reader()
    trainer = quiet_trainer(devices=processes, max_steps=1)
    trainer.fit(reader, data)
    return reader.seen


def start(root, folder, broken, processes):
    """What each process does before it trains; nobody else's files are in the folder of shared ones."""
    shared._FOLDERS = (folder,)
    names, original = [], decode.decode

    def noting(path, *options):
        names.append(path.name)
        return original(path, *options)

    decode.decode = noting
    found = {}
    for name, make in {"plain": lambda data: data, "wrapped": lambda data: Subset(data, batch_size=4)}.items():
        names.clear()
        data = make(ImageFolder(root, image_size=8, batch_size=4))
        seen = fit(data, processes)
        train = data.splits.train
        found[name] = {**seen, "decoded": sorted(names), "digest": train.digest(), "statistics": [data.mean, data.std]}
    slow = SlowData(batch_size=4, num_workers=0)
    found["slow"] = {**fit(slow, processes), "statistics": [slow.mean, slow.std]}
    with contextlib.suppress(ValueError):
        fit(ImageFolder(broken, image_size=8, batch_size=4), processes)
        found["error"] = None
    data = ImageFolder(broken, image_size=8, batch_size=4, on_error="skip", memory_limit=0, num_workers=0)
    names.clear()
    fit(data, processes)
    found["skipped"] = {"train": len(data.splits.train), "decoded": len(names)}
    found["left"] = [path.name for path in folder.iterdir()]
    return found
