"""New classes for a finished classifier, without the images of its own classes."""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from datamodules import ImageDataModule, Tasks, TaskSequence
from datamodules.loading.dataset import ImageSelection
from datamodules.reading import Reading
from datamodules.wrappers.task_epochs import TaskEpochs
from datamodules.wrappers.task_images import TaskImages, TaskSplits
from datamodules.wrappers.tasks import Scenario
from recipes.nn.encoders.files import checkpoint_file, read_weights, why_unreadable


class AddedClasses(TaskSequence):
    """Adds new classes to a finished classifier, without the images of its own classes.

    The first task consists of the classes of the classifier. It has no images and no epochs: training begins with the
    second task, from the weights of the classifier. ``base`` and each DataModule of ``then`` is one further task. This
    is the situation that Learning without Forgetting was written for (Li & Hoiem, 2016, arXiv:1606.09282).

    A recipe loads the encoder and the head of the classifier when training begins, and normalises images as the
    classifier does. Size and channels of the images are those that the classifier was trained with, unless ``base``
    states others. The encoder of the recipe must be the network of the classifier.

    Args:
        classifier: finished classifier: the directory of a run, a checkpoint, or a file of weights with a linear layer
            on top.
        base: images of the new classes.
        then: further DataModules, each with classes that are added after those before.
        class_names: names of the classes of the classifier. If null, they are read from the checkpoint, or from
            export.json beside a file of weights.
        scenario: whether the network is given the task: ``task`` or ``class``; see ``Tasks``.
        epochs_per_task: number of epochs of each DataModule, >= 1: one number, or one for each.
        Other arguments: see ``ImageDataModule``.

    Attributes:
        learned: names of the classes of the classifier.

    Raises:
        FileNotFoundError: if there is no such classifier.
        ValueError: if the names of its classes are unknown, the scenario is ``domain``, or a new class has the name of
            an old one in the scenario ``class``; also what ``TaskSequence`` raises.
    """

    def __init__(
        self,
        classifier: str | Path,
        base: ImageDataModule,
        then: Sequence[ImageDataModule] = (),
        class_names: Sequence[str] | None = None,
        scenario: Scenario = "class",
        epochs_per_task: int | Sequence[int] = 1,
        batch_size: int = 256,
        num_workers: int | None = None,
    ) -> None:
        if scenario == "domain":
            raise ValueError(
                "scenario is domain, whose tasks share their classes: choose task or class for new classes"
            )
        number = None if then else 1
        way = "datasets" if then else "classes"
        options = (base, then, way, scenario, number, None, None, None, epochs_per_task, batch_size, num_workers)
        super().__init__(*options)  # type: ignore[arg-type]
        self._new = TaskSequence(*options)  # type: ignore[arg-type]  # without the classes of the classifier
        self._new._is_read_by_another = True
        self.classifier = Path(classifier).expanduser()
        self.given_names = None if class_names is None else tuple(class_names)
        self.num_tasks += 1
        self.epochs_per_task = (0, *self.epochs_per_task)
        self.epochs = TaskEpochs(self.epochs_per_task)

    @cached_property
    def learned(self) -> tuple[str, ...]:
        """Names of the classes of the classifier."""
        names = self.given_names or _class_names(self.classifier)
        if len(names) < 2:
            raise ValueError(
                f"{self.classifier} has no names of classes: give those of the classifier as class_names, in the order "
                "of its outputs"
            )
        return names

    @property
    def classes_without_images(self) -> int:
        """How many classes have no images."""
        return len(self.learned)

    @cached_property
    def tasks(self) -> Tasks:
        """How many classes each task has, and the scenario."""
        return Tasks((len(self.learned), *self._new.tasks.sizes), self.scenario)

    def _ask_network(self) -> None:
        """Takes what the arguments of the new images leave open from the classifier."""
        self.read_as(self._reading_of_classifier)
        super()._ask_network()

    @cached_property
    def _reading_of_classifier(self) -> Reading:
        return read_weights(self.classifier).reading if self.learned else Reading()

    def task_sources(self) -> list[tuple[ImageDataModule, list[int]]]:
        """For each task, where it is from, and its classes there: none for the first."""
        return [(self.base, []), *self._new.task_sources()]

    def load(self) -> TaskSplits:
        """Reads the images of the new classes."""
        self._new.setup()
        new, shift = self._new.splits, len(self.learned)
        names = [[data.class_names[place] for place in classes] for data, classes in self._new.task_sources()]
        if self.scenario == "class" and (known := {name for part in names for name in part} & set(self.learned)):
            raise ValueError(
                f"the classifier has the class {min(known)!r} already: in the scenario class, give new classes only"
            )
        none = ImageSelection(new.train.parts[0], torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))

        def shifted(images: TaskImages) -> TaskImages:
            return TaskImages([none, *(_shifted(part, shift) for part in images.parts)])

        val, test = (None if images is None else shifted(images) for images in (new.val, new.test))
        return TaskSplits(self._names([list(self.learned), *names]), shifted(new.train), val, test)


def _shifted(images: Any, shift: int) -> ImageSelection:
    return ImageSelection(images.base, images.rows, images.label + shift)


def _class_names(classifier: Path) -> tuple[str, ...]:
    file = checkpoint_file(classifier)
    if file is None:
        raise FileNotFoundError(f"no classifier at {classifier}: give the directory of a run, a checkpoint or weights")
    report = file.parent / "export.json"
    if file.suffix != ".ckpt":
        return tuple(json.loads(report.read_text())["classes"]) if report.is_file() else ()
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises UnpicklingError, RuntimeError, EOFError or KeyError
        raise ValueError(f"{file} is not a checkpoint that can be read: {why_unreadable(file, error)}") from error
    return tuple(content.get("class_names", ())) if isinstance(content, dict) else ()
