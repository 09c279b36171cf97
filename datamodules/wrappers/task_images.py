"""The images of all tasks as one dataset, and the change of the images in each task."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, rotate

from datamodules.base import Splits
from datamodules.loading.dataset import ImageDataset, ImageSelection
from datamodules.wrappers.tasks import TaskBatch

Change = Callable[[Tensor, int], Tensor]


class TaskImages(ImageDataset):
    """The images of all tasks in one dataset, task after task.

    Args:
        parts: the images of each task, with the labels that they have in the sequence.
        change: makes of images uint8 [B, C, H, W] and the number of their task the images of that task, uint8 of the
            same shape; none leaves them as they are.

    Attributes:
        task: int64 [N], the number of the task that each image is of.
    """

    def __init__(self, parts: Sequence[ImageDataset], change: Change | None = None) -> None:
        sizes = torch.tensor([len(part) for part in parts])
        self.parts = parts
        self.change = change
        self.label = torch.cat([part.label for part in parts])
        self.task = torch.arange(len(parts)).repeat_interleave(sizes)
        self.first = sizes.cumsum(0) - sizes  # [tasks], where each begins
        self.in_memory = all(part.in_memory for part in parts)

    def images(self, index: Tensor) -> Tensor:
        """Fetches the images at the positions ``index`` [B], as uint8 [B, C, H, W]."""
        task = self.task[index]
        if not len(task) or bool((task == task[0]).all()):  # as in training, and faster than to ask which there are
            return self._of_task(int(task[0]) if len(task) else 0, index)
        present = task.unique().tolist()
        places = [(task == number).nonzero().flatten() for number in present]
        parts = [self._of_task(number, index[place]) for number, place in zip(present, places, strict=True)]
        return torch.cat(parts)[torch.cat(places).argsort()]

    @property
    def group(self) -> Tensor:
        """The group that each image belongs to, int64 [N]: its task and class."""
        return self.label + self.task * (int(self.label.max()) + 2)  # labels start at -1

    def digest(self) -> str:
        """SHA-256 of those of the tasks, and of what each does to a picture."""
        whole = hashlib.sha256()
        shape = self.images(torch.tensor([0])).shape
        picture = torch.arange(shape.numel()).remainder(256).to(torch.uint8).view(shape)
        for number, part in enumerate(self.parts):
            changed = picture if self.change is None else self.change(picture, number)
            whole.update(part.digest().encode() + changed.numpy().tobytes())
        return whole.hexdigest()

    def __getitems__(self, indices: list[int]) -> TaskBatch:  # type: ignore[override]  # a batch with a field more
        return TaskBatch(
            *super().__getitems__(indices), self.task[torch.tensor(indices, dtype=torch.int64).clamp(min=0)]
        )

    def _of_task(self, number: int, index: Tensor) -> Tensor:
        image = self.parts[number].images(index - self.first[number])
        return image if self.change is None else self.change(image, number)


@dataclass(frozen=True)
class TaskSplits(Splits):
    """The images of a ``TaskSequence``; see ``Splits``."""

    train: TaskImages
    val: TaskImages | None = None
    test: TaskImages | None = None


def relabelled(images: ImageDataset, new: Tensor) -> ImageSelection:
    """The images of the classes that have a new label; the last of ``new`` stands for unlabelled images."""
    label = new[images.label]
    rows = (label >= 0).nonzero().flatten()
    return ImageSelection(images, rows, label[rows])


def rotations(angle: float) -> Change:
    """Turns the images of each task counterclockwise by ``angle`` degrees more than those of the task before."""
    return partial(_rotated, angle)


def permutations(pixels: int, num_tasks: int, seed: int) -> Change:
    """Puts the pixels of each task but the first into a random order: a function of the seed and the task."""
    orders = [np.random.RandomState((seed, task)).permutation(pixels) for task in range(num_tasks)]
    return partial(_permuted, [torch.from_numpy(order) for order in orders])


def _permuted(orders: Sequence[Tensor], image: Tensor, task: int) -> Tensor:
    return image.flatten(2).index_select(2, orders[task]).view_as(image) if task else image


def _rotated(angle: float, image: Tensor, task: int) -> Tensor:
    return rotate(image, task * angle, InterpolationMode.BILINEAR) if task else image
