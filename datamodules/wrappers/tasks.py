"""The number of classes per task and the scenario, known before the images are read."""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

from torch import Tensor

Scenario = Literal["task", "class", "domain"]


@dataclass(frozen=True)
class Tasks:
    """Number of classes of each task, and the scenario (van de Ven & Tolias, 2019, arXiv:1904.07734).

    Args:
        sizes: number of classes of each task, each > 0.
        scenario: meaning of the labels. In ``task`` every class has its own label, and the task of each image is known.
            In ``class`` every class has its own label, and the task is unknown. In ``domain`` all tasks share the
            labels 0, 1, ..., and the task is unknown.

    Raises:
        ValueError: if there is no task or one without a class, or if in ``domain`` the tasks have unlike numbers of
            classes.
    """

    sizes: tuple[int, ...]
    scenario: Scenario = "class"

    def __post_init__(self) -> None:
        object.__setattr__(self, "sizes", tuple(self.sizes))  # a list in YAML
        if self.scenario not in get_args(Scenario):
            raise ValueError(f"scenario is {self.scenario!r}: it must be one of {', '.join(get_args(Scenario))}")
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"the tasks have {list(self.sizes)} classes: give at least one task, and each a class")
        if self.scenario == "domain" and len(set(self.sizes)) > 1:
            raise ValueError(
                f"the tasks have {', '.join(map(str, self.sizes))} classes: in the scenario domain they have the same "
                "labels, so give each task as many classes, or choose the scenario task or class"
            )

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def num_classes(self) -> int:
        """How many labels there are over all tasks."""
        return sum(self.head_sizes)

    @property
    def head_sizes(self) -> tuple[int, ...]:
        """How many classes each head has: one for each task, in ``domain`` one for all."""
        return self.sizes[:1] if self.scenario == "domain" else self.sizes

    def labels(self, task: int) -> range:
        """The labels of the classes of a task, from 0 to ``len(tasks) - 1``."""
        if self.scenario == "domain":
            return range(self.sizes[0])
        end = list(accumulate(self.sizes))[task]
        return range(end - self.sizes[task], end)


class TaskBatch(NamedTuple):
    """A batch of a ``TaskSequence``: a ``Batch`` with the task of each image.

    Attributes:
        image: uint8 [B, C, H, W], with C 1 (grey) or 3 (RGB).
        label: int64 [B], the class of each image.
        index: int64 [B], the position of each image in the dataset of all tasks.
        task: int64 [B], the number of the task that each image is of, from 0.
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    task: Tensor
