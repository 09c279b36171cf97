"""Leaves a run few images to validate and test on."""

from dataclasses import replace

import torch
from lightning.pytorch import Callback

from datamodules.loading.dataset import ImageSelection
from datamodules.wrappers.task_images import TaskImages


class FewImages(Callback):
    """Keeps the first images of each split for validation and testing: of all tasks together, in a sequence of tasks.

    Args:
        count: how many, in each split.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def setup(self, trainer, pl_module, stage):
        data = trainer.datamodule
        data._splits = replace(
            data.splits, **{name: self.first(getattr(data.splits, name)) for name in ("val", "test")}
        )

    def first(self, images):
        if isinstance(images, TaskImages):
            rows = [
                torch.arange(min(len(part), self.count if task == 0 else 0)) for task, part in enumerate(images.parts)
            ]
            parts = [ImageSelection(part, row, part.label[row]) for part, row in zip(images.parts, rows, strict=True)]
            return TaskImages(parts, images.change)
        rows = torch.arange(self.count)
        return ImageSelection(images, rows, images.label[rows])
