"""What a continual run is measured by: the accuracy on every task after every task, and what follows from it.

The functions take the matrix R of one view, float64 [T+1, T]: row 0 was measured before training and row t after the
t-th task; column j is the accuracy on the images of one task, in [0, 1]. Of a sequence that is not finished, with k
tasks learned, they take the first k tasks: rows 0 to k and as many columns. Where there is nothing to take the mean of,
or it was not measured, they give NaN.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class AccuracyMatrix(Metric):
    """The accuracy on the images of each task, after each task and before the first, from one run in both views.

    In the view ``aware`` it is known of which task an image is, and the prediction is one of its classes; in the view
    ``agnostic`` the prediction is one of all classes seen so far.

    The counts are integers, and they are kept in checkpoints. Counts of several devices are added; where each device
    sees all images, make it with ``sync_on_compute=False``.

    Args:
        num_tasks: T, > 0.
        **kwargs: of ``torchmetrics.Metric``.

    Raises:
        ValueError: if ``num_tasks`` is not positive.
    """

    full_state_update = False
    higher_is_better = True

    images: Tensor
    aware: Tensor
    agnostic: Tensor

    def __init__(self, num_tasks: int, **kwargs: Any) -> None:
        # the module that it is a part of may be converted, and a result that is kept with it
        super().__init__(**{"compute_with_cache": False, **kwargs})
        if num_tasks < 1:
            raise ValueError(f"num_tasks is {num_tasks}: a sequence has at least 1 task")
        self.num_tasks = num_tasks
        for name in ("images", "aware", "agnostic"):
            counts = torch.zeros(num_tasks + 1, num_tasks, dtype=torch.int64)
            self.add_state(name, counts, dist_reduce_fx="sum", persistent=True)

    def update(self, row: int, aware: Tensor, agnostic: Tensor, task: Tensor) -> None:
        """Counts images.

        Args:
            row: how many tasks were learned before, from 0 to T.
            aware: bool [B], whether the prediction among the classes of the image's task is right.
            agnostic: bool [B], whether the prediction among all classes seen so far is right.
            task: int64 [B], the task that each image is of.

        Raises:
            ValueError: if there is no such row.
        """
        if not 0 <= row <= self.num_tasks:
            raise ValueError(f"row is {row}: of {self.num_tasks} tasks there are rows 0 to {self.num_tasks}")
        of_task = task[:, None] == torch.arange(self.num_tasks, device=task.device)  # [B, T]
        self.images[row] += of_task.sum(0)
        self.aware[row] += (of_task & aware[:, None]).sum(0)
        self.agnostic[row] += (of_task & agnostic[:, None]).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """R in the views ``aware`` and ``agnostic``, float64 [T+1, T]; NaN where there were no images."""
        return {name: getattr(self, name).double() / self.images for name in ("aware", "agnostic")}

    def of_scenario(self, scenario: str) -> Tensor:
        """R in the view that a scenario is about, on the CPU."""
        return self.compute()[view_of(scenario)].cpu()

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._update_count = int(self.images.sum())  # counts from a checkpoint count: no warning that there are none


def average_accuracy(matrix: Tensor) -> float:
    """The mean accuracy on the tasks learned, after the last of them (Lopez-Paz & Ranzato, 2017, eq. 2)."""
    return _of_learned(matrix)[-1].mean().item()


def average_incremental_accuracy(matrix: Tensor) -> float:
    """The mean over the tasks of the mean accuracy on the tasks learned by then (iCaRL: Rebuffi et al., 2017).

    iCaRL (arXiv:1611.07725) takes the accuracy on all images of the tasks learned by then, which is the same where the
    tasks have equally many.
    """
    after = _of_learned(matrix)[1:]
    return torch.stack([row[: t + 1].mean() for t, row in enumerate(after)] or [after.mean()]).mean().item()


def learning_accuracy(matrix: Tensor) -> float:
    """The mean accuracy on each task right after it was learned: the plasticity of the learner."""
    return _of_learned(matrix)[1:].diagonal().mean().item()


def backward_transfer(matrix: Tensor) -> float:
    """By how much the accuracy on a task has changed since it was learned, in the mean over all but the last task.

    Equation 3 of Lopez-Paz & Ranzato (2017, arXiv:1706.08840): the mean over i < T of R[T, i] - R[i, i]; negative where
    learning makes the network forget.
    """
    after = _of_learned(matrix)[1:]
    return (after[-1:] - after.diagonal())[:, :-1].mean().item()


def forward_transfer(matrix: Tensor) -> float:
    """By how much the accuracy on a task is better right before it is learned than it was before training.

    Equation 4 of Lopez-Paz & Ranzato (2017, arXiv:1706.08840): the mean over i > 1 of R[i-1, i] - b[i], where b is row
    0, the accuracy of the network before training. It says nothing where the classes of a later task cannot be
    predicted: see ``measures``.
    """
    learned = _of_learned(matrix)
    return (learned.diagonal() - learned[0])[1:].mean().item()


def forgetting(matrix: Tensor) -> float:
    """By how much the accuracy on a task was better at its best, in the mean over all but the last task.

    Chaudhry et al. (2018, arXiv:1801.10112): the mean over j < T of f[j], the highest of R[1, j] to R[T-1, j] less
    R[T, j]. It is negative where the last task makes the accuracy on the others better than ever.
    """
    return forgetting_by_task(matrix).mean().item()


def forgetting_by_task(matrix: Tensor) -> Tensor:
    """The summands of ``forgetting``, one for each task learned but the last: float64 [k-1]."""
    after = _of_learned(matrix)[1:]
    if len(after) < 2:
        return after.new_empty(0)
    return (after[:-1].amax(0) - after[-1])[:-1]


MEASURES: dict[str, Callable[[Tensor], float]] = {
    measure.__name__: measure
    for measure in (
        average_accuracy,
        average_incremental_accuracy,
        learning_accuracy,
        backward_transfer,
        forward_transfer,
        forgetting,
    )
}


def says_forward_transfer(view: str, scenario: str) -> bool:
    """Whether forward transfer depends on what was learned.

    If the task is unknown and each has its own classes, those of a later task are never predicted. Forward transfer is
    then minus the accuracy of the initial weights, whatever the method.
    """
    return view == "aware" or scenario == "domain"


def view_of(scenario: str) -> str:
    """The view that a scenario is about: ``aware`` for ``task``, ``agnostic`` for the others."""
    return "aware" if scenario == "task" else "agnostic"


def measures(matrix: Tensor, view: str, scenario: str) -> dict[str, float]:
    """All ``MEASURES`` of the matrix of a view, by name; NaN where one is undefined or says nothing."""
    values = {name: measure(matrix) for name, measure in MEASURES.items()}
    return values if says_forward_transfer(view, scenario) else {**values, "forward_transfer": math.nan}


def summary(matrix: Tensor, view: str, scenario: str) -> dict[str, float]:
    """All ``MEASURES`` of the matrix of a view that are defined, by name."""
    return {name: value for name, value in measures(matrix, view, scenario).items() if not math.isnan(value)}


def tasks_learned(matrix: Tensor) -> int:
    """After how many tasks something was measured: k of a matrix [T+1, T]."""
    measured = (~matrix.isnan()).any(1).nonzero().flatten()
    return int(measured[-1]) if len(measured) else 0


def _of_learned(matrix: Tensor) -> Tensor:
    """Rows 0 to k of the tasks learned: [k+1, k]."""
    learned = tasks_learned(matrix)
    return matrix[: learned + 1, :learned]


def mean_over_tasks(matrix: Tensor) -> Tensor:
    """The mean accuracy on the tasks learned by then, after each task: float64 [k] of a matrix [T+1, T]."""
    learned = tasks_learned(matrix)
    return matrix.new_tensor([matrix[task, :task].mean().item() for task in range(1, learned + 1)])
