"""Turns any DataModule into a sequence of tasks for continual learning."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.base import ImageDataModule, Splits, is_labelled, listed_classes
from datamodules.batch import Batch
from datamodules.loading.sampler import GlobalBatchSampler
from datamodules.wrappers.task_epochs import TaskEpochs, end_epoch_of_killed_run, follow_tasks
from datamodules.wrappers.task_images import Change, TaskImages, TaskSplits, permutations, relabelled, rotations
from datamodules.wrappers.tasks import Scenario, Tasks

By = Literal["classes", "permutation", "rotation", "datasets"]

_NUM_TASKS = 5  # van de Ven & Tolias, 2019: five tasks of two classes
_HALF_TURN = 180.0  # Lopez-Paz & Ranzato, 2017, arXiv:1706.08840: rotations between 0 and 180 degrees


class TaskSequence(ImageDataModule):
    """Splits DataModules into a sequence of tasks for continual learning.

    The tasks are made in one of four ways:

    - ``classes``: each task has some of the classes of ``base``: those of ``class_groups``, or equally many in the
      order of ``base`` or a random order.
    - ``permutation``: each has all images of ``base``, with the pixels in a random order of its own, the same for
      all images and channels; the first has them as they are (Goodfellow et al., 2013, arXiv:1312.6211).
    - ``rotation``: each has all images of ``base``, turned counterclockwise by ``angle`` more than the one before
      (bilinear, black around); the first has them as they are (Lopez-Paz & Ranzato, 2017, arXiv:1706.08840).
    - ``datasets``: ``base`` is the first, and each of ``then`` is one.

    Labels are numbered in the order of the tasks; in the scenario ``domain`` the i-th class of every task has the label
    i. A class whose name occurs in several tasks has the task's number in its name. An epoch deals the images of
    one task. Each task has the validation and test images of its classes; a split that not all DataModules have is
    left out, with a warning. Images without a label are left out. Batches are ``TaskBatch``, and ``index`` is the
    position in the dataset of all tasks. ``mean`` and ``std`` are those of the first task's training images, as nobody
    has seen the others when training begins.

    A Trainer's ``max_epochs`` is set to the epochs of all tasks, unless it is smaller or ``max_steps`` is given: then
    the run ends there.

    Args:
        base: source of the images. Its own batch_size and num_workers are not used.
        then: further DataModules, for tasks by ``datasets``.
        by: way to make tasks: ``classes``, ``permutation``, ``rotation`` or ``datasets``.
        scenario: meaning of the labels, and whether the network is given the task: ``task``, ``class`` or ``domain``;
            see ``Tasks``.
        num_tasks: number of tasks. If null, uses the number of class_groups or datasets, otherwise 5.
        class_groups: names of the classes of each task, for tasks by ``classes``. Classes that are not named are left
            out. If null, each task gets equally many classes.
        order_seed: seed for the order of the classes, or of the pixels, >= 0. If null, keeps the order of the classes
            and uses 0 for pixels. 1993 is the order of CIFAR-100's classes in FACIL and PyCIL.
        angle: degrees between consecutive tasks, for tasks by ``rotation``. If null, uses 180 / num_tasks.
        epochs_per_task: number of epochs of each task, >= 1: one number, or one for each task.
        Other arguments: see ``ImageDataModule``.

    Attributes:
        epochs_per_task: one number for each task.
        epochs: to which task each epoch of the run belongs.
        cumulative: whether an epoch deals the images of all tasks up to its own: see ``deal_earlier_tasks``.

    Raises:
        ValueError: if an argument is out of its range or not for the chosen way, if the classes do not divide over the
            tasks, if a class is named twice or is not there, if the images of the datasets have unlike shapes, or
            if a task has fewer training images than ``batch_size``.
    """

    def __init__(
        self,
        base: ImageDataModule,
        then: Sequence[ImageDataModule] = (),
        by: By = "classes",
        scenario: Scenario = "class",
        num_tasks: int | None = None,
        class_groups: Sequence[Sequence[str]] | None = None,
        order_seed: int | None = None,
        angle: float | None = None,
        epochs_per_task: int | Sequence[int] = 1,
        batch_size: int = 256,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if by not in get_args(By):
            raise ValueError(f"by is {by!r}: it must be one of {', '.join(get_args(By))}")
        for name, value, ways in (
            ("then", then or None, ("datasets",)),
            ("num_tasks", num_tasks, ("classes", "permutation", "rotation")),
            ("class_groups", class_groups, ("classes",)),
            ("order_seed", order_seed, ("classes", "permutation")),
            ("angle", angle, ("rotation",)),
        ):
            if value is not None and by not in ways:
                raise ValueError(f"{name} is for tasks by {' or '.join(ways)}, and by is {by}: leave {name} out")
        if by == "datasets" and not then:
            raise ValueError("then is empty: tasks by datasets take one DataModule as base, and the others in then")
        if class_groups is not None and (num_tasks is not None or order_seed is not None):
            raise ValueError("class_groups gives the tasks and their order: leave num_tasks and order_seed out")
        if class_groups is not None and (not class_groups or not all(class_groups)):
            raise ValueError(f"class_groups is {class_groups}: give at least one task, and each at least one class")
        if num_tasks is not None and num_tasks < 1:
            raise ValueError(f"num_tasks is {num_tasks}: it must be at least 1")
        if order_seed is not None and not 0 <= order_seed < 2**32:
            raise ValueError(f"order_seed is {order_seed}: it must be at least 0 and below 2**32")
        if angle is not None and not math.isfinite(angle):
            raise ValueError(f"angle is {angle}: it must be a number of degrees")
        self.base = base
        self.then = tuple(then)
        self.sources = (base, *self.then)
        self.by = by
        self.scenario: Scenario = scenario
        self.class_groups = None if class_groups is None else tuple(tuple(group) for group in class_groups)
        self.num_tasks = len(self.class_groups or ()) or (1 + len(self.then) if then else num_tasks or _NUM_TASKS)
        self.order_seed = order_seed
        self.angle = _HALF_TURN / self.num_tasks if angle is None else angle
        self.epochs_per_task = (
            (epochs_per_task,) * self.num_tasks if isinstance(epochs_per_task, int) else tuple(epochs_per_task)
        )
        if len(self.epochs_per_task) != self.num_tasks:
            raise ValueError(
                f"epochs_per_task has {len(self.epochs_per_task)} numbers, and there are {self.num_tasks} tasks: give "
                "one for each, or one number for all"
            )
        if min(self.epochs_per_task) < 1:
            raise ValueError(f"epochs_per_task is {epochs_per_task}: each task takes at least 1")
        named = [name for group in self.class_groups or () for name in group]
        if twice := [name for name, count in Counter(named).items() if count > 1]:
            raise ValueError(f"class_groups names {twice[0]!r} twice: a class is in one task")
        self.epochs = TaskEpochs(self.epochs_per_task)
        self._cumulative = False
        self._give_trainer_back: Callable[[], None] | None = None
        self._dealt = range(0)  # the tasks that the training loader deals
        self._val_loader: DataLoader[Batch] | None = None

    # The tasks

    @cached_property
    def tasks(self) -> Tasks:
        """How many classes each task has, and the scenario; known before ``setup`` where ``base.num_classes`` is."""
        if self.class_groups is not None:
            return Tasks(tuple(map(len, self.class_groups)), self.scenario)
        sizes = tuple(data.num_classes for data in (self.base, *self.then))
        if not all(sizes):
            name = type((self.base, *self.then)[sizes.index(0)]).__name__
            raise ValueError(
                f"{name} has no labelled images: a sequence of tasks is made of classes. To predict new images, give "
                f"{name} itself as the data (--data {name})"
            )
        if self.by == "datasets":
            return Tasks(sizes, self.scenario)
        (classes,) = sizes
        if self.by != "classes":
            return Tasks((classes,) * self.num_tasks, self.scenario)
        if classes % self.num_tasks:
            fitting = [str(number) for number in range(1, classes + 1) if classes % number == 0]
            raise ValueError(
                f"num_tasks is {self.num_tasks}: it must divide the number of classes, {classes}. Choose one of "
                f"{', '.join(fitting)}, or list the classes of each task in class_groups"
            )
        return Tasks((classes // self.num_tasks,) * self.num_tasks, self.scenario)

    @property
    def num_classes(self) -> int:
        """How many labels there are over all tasks; known before ``setup`` where ``base.num_classes`` is."""
        return self.tasks.num_classes

    def positions(self, dataset: TaskImages, *tasks: int) -> Tensor:
        """Where the images of some tasks stand in one of the datasets, int64 [N] and ascending."""
        return torch.isin(dataset.task, torch.tensor(tasks)).nonzero().flatten()

    def match_classes(self, names: Sequence[str], strict: bool = True) -> None:
        """Checks that the classes are those of a trained classifier: the labels follow from the tasks.

        Raises:
            ValueError: if they are not.
        """
        if self.class_names != tuple(names):
            raise ValueError(
                f"the checkpoint knows {listed_classes(names)}, and the data has {listed_classes(self.class_names)}: "
                "give the same tasks"
            )

    # The images

    def prepare_data(self) -> None:
        """Downloads or prepares what the DataModules need."""
        self._ask_network()
        with self._reading_sources():
            for data in (self.base, *self.then):
                data.prepare_data()

    def load(self) -> TaskSplits:
        """Reads the images, and sorts them into tasks."""
        for data in (self.base, *self.then):
            data.setup()
        self._check_shapes()
        tasks = self.tasks
        sources, change = self.task_sources(), self._change()
        names = [[data.class_names[place] for place in classes] for data, classes in sources]
        news = [torch.full((len(data.class_names) + 1,), -1) for data, _ in sources]  # labels here, by those there
        for task, (_, classes) in enumerate(sources):
            news[task][classes] = torch.tensor(tasks.labels(task))
        split: dict[str, Any] = {}
        for which in ("train", "val", "test"):
            given = [getattr(data.splits, which) for data, _ in sources]
            images = [part for part in given if is_labelled(part)]
            if len(images) == len(sources):
                parts = zip(images, news, strict=True)
                split[which] = TaskImages([relabelled(part, new) for part, new in parts], change)
            elif any(part is not None for part in given):
                missing = [type(data).__name__ for data, _ in sources if not is_labelled(getattr(data.splits, which))]
                rank_zero_warn(f"{missing[0]} has no {which} images with labels: those of the other tasks are left out")
        return TaskSplits(self._names(names), **split)

    @property
    def splits(self) -> TaskSplits:
        """The datasets behind the loaders, each with the images of all tasks."""
        return super().splits  # type: ignore[return-value]

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        first = ImageDataModule()
        first._splits = Splits((), next(part for part in self.splits.train.parts if len(part)))  # without a change
        first._statistics_place = self._statistics_place
        return first.mean, first.std

    def task_sources(self) -> list[tuple[ImageDataModule, list[int]]]:
        """For each task, where it is from, and the classes there in the order of their labels here."""
        if self.by != "classes":
            datasets = (self.base, *self.then) if self.then else (self.base,) * self.num_tasks
            return [(data, list(range(len(data.class_names)))) for data in datasets]
        known = self.base.class_names
        if self.class_groups is None:
            order = np.arange(len(known))
            if self.order_seed is not None:
                order = np.random.RandomState(self.order_seed).permutation(len(known))  # its stream is frozen (NEP 19)
            return [(self.base, group.tolist()) for group in np.split(order, self.num_tasks)]
        if unknown := [name for group in self.class_groups for name in group if name not in known]:
            raise ValueError(f"{type(self.base).__name__} has no class {unknown[0]!r}; it has {', '.join(known)}")
        return [(self.base, [known.index(name) for name in group]) for group in self.class_groups]

    def _names(self, names: list[list[str]]) -> tuple[str, ...]:
        if self.scenario == "domain":
            return tuple(" or ".join(dict.fromkeys(alike)) for alike in zip(*names, strict=True))
        count = Counter(name for of_task in names for name in of_task)
        return tuple(
            f"{name} (task {task + 1})" if count[name] > 1 else name
            for task, of_task in enumerate(names)
            for name in of_task
        )

    def _check_shapes(self) -> None:
        for data in self.then:
            if data.image_shape != self.base.image_shape:
                names = type(data).__name__, type(self.base).__name__
                shapes = ["×".join(map(str, each.image_shape)) for each in (data, self.base)]
                raise ValueError(
                    f"{names[0]} has images of {shapes[0]} and {names[1]} of {shapes[1]} (channels, height, width): a "
                    "sequence takes images of one shape; set size of Digits, or image_size and channels of ImageFolder"
                )

    def _change(self) -> Change | None:
        if self.by == "rotation":
            return rotations(self.angle)
        if self.by == "permutation":
            return permutations(math.prod(self.base.image_shape[1:]), self.num_tasks, self.order_seed or 0)
        return None

    # The loaders

    def setup(self, stage: str | None = None) -> None:
        """Reads the images, once; for training, has the Trainer ask for every epoch's loader, and end with the tasks.

        Args:
            stage: of the Trainer.
        """
        super().setup(stage)
        self._dealt, self._val_loader = range(0), None
        if stage != "fit" or self.trainer is None:
            return
        self._give_trainer_back = follow_tasks(self.trainer, self.epochs.total)

    def _give_back(self) -> None:
        super()._give_back()
        self._cumulative = False
        if self._give_trainer_back is not None:
            self._give_trainer_back()
            self._give_trainer_back = None

    @property
    def cumulative(self) -> bool:
        """Whether an epoch deals the images of all tasks up to its own."""
        return self._cumulative

    def deal_earlier_tasks(self) -> None:
        """Has every epoch deal the images of all tasks up to its own, until the run ends: for ``setup`` of a recipe."""
        self._cumulative = True

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training images of the task of this epoch, in batches, in a new order every epoch.

        The loader is the same as long as the task is, so that workers live on. An incomplete last batch is dropped.

        Raises:
            ValueError: if a task has fewer training images than ``batch_size``, or if it does not divide over the
                devices.
        """
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        epoch = max(epoch, self._position.get("epoch", 0))  # a resumed Trainer may not know its epoch yet
        task = self.epochs.task_of(epoch)
        dealt = range(0 if self.cumulative else task, task + 1)
        images = self._given.train
        if self._train_loader is None or self._dealt != dealt or self._train_loader.dataset is not images:
            self._dealt = dealt
            loader = super().train_dataloader()
            if self.trainer is not None:
                end_epoch_of_killed_run(self.trainer, len(loader))
            return loader
        return self._train_loader

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The validation images of all tasks, in order; no loader where there are none."""
        val = self._given.val
        if val is None:
            return []
        if self._val_loader is None or self._val_loader.dataset is not val:  # the same in all epochs, as its workers
            self._val_loader = self.in_order(val, self._measured("val"))
        return self._val_loader

    @property
    def batches_per_epoch(self) -> list[int]:
        """How many batches an epoch of each task has, the same on every device."""
        return [images // self.batch_size for images in self._images_per_epoch]

    def epoch_lengths(self, first: int, stop: int) -> list[tuple[int, int]]:
        """The lengths of epochs of a run, from ``first`` on and before ``stop``: they differ from task to task.

        Returns:
            For each task, how many of the epochs belong to it, and how many batches each of them has.
        """
        return list(zip(self.epochs.of_each_task(first, stop), self.batches_per_epoch))

    @property
    def _images_per_epoch(self) -> list[int]:
        images = [len(part) for part in self.splits.train.parts]
        return list(accumulate(images)) if self.cumulative else images

    def _train_sampler(self, devices: int, rank: int) -> GlobalBatchSampler:
        train, dealt = self.splits.train, self._dealt
        for task, size in enumerate(self._images_per_epoch):
            if self.epochs_per_task[task] and size < self.batch_size:
                raise ValueError(
                    f"batch_size is {self.batch_size}, but task {task + 1} has only {size} training images: use a "
                    f"batch_size of at most {size}"
                )
        return GlobalBatchSampler(self.positions(train, *dealt), self.batch_size, devices, rank, training=True)
