"""What test_measures.py runs in one process and in two."""

import torch
from lightning.pytorch import seed_everything

from datamodules import ImageDataModule, ImagesInMemory
from datamodules.base import Splits
from recipes import MeanTeacher
from recipes.nn import ConvNet
from tests.helpers.training import quiet_trainer


class HalfLabelled(ImageDataModule):
    """Twelve images; of each batch of two, the second alone has a label, or none has."""

    def __init__(self, labelled: bool) -> None:
        super().__init__(batch_size=2, num_workers=0)
        self.labelled = labelled

    def load(self) -> Splits:
        """Makes the images."""
        generator = torch.Generator().manual_seed(0)
        image = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=generator)
        label = torch.arange(12) % 3
        test = label if self.labelled else torch.full_like(label, -1)
        test = torch.where(torch.arange(12) % 2 == 0, -1, test)
        parts = [ImagesInMemory(image, each) for each in (label, test, test)]
        return Splits(("a", "b", "c"), *parts)


def measure(devices: int, labelled: bool) -> dict[str, float]:
    """Validates and tests a fresh Mean Teacher."""
    seed_everything(0, verbose=False)
    recipe = MeanTeacher(ConvNet(in_channels=1, widths=[4]), 3, scheduler=None)
    trainer = quiet_trainer(devices)
    (val,) = trainer.validate(recipe, datamodule=HalfLabelled(labelled), verbose=False)
    (test,) = trainer.test(recipe, datamodule=HalfLabelled(labelled), verbose=False)
    return val | test
