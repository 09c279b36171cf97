import math
from collections.abc import Iterable
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_info


@dataclass(frozen=True)
class TaskStart:
    """How tasks start, all but the first (Li & Hoiem, 2016, arXiv:1606.09282, Section 3).

    Args:
        warmup_epochs: epochs at the start of a task in which only its head learns, >= 0; 0 leaves the warm-up out.
        later_lr_factor: factor on the learning rate in later tasks, > 0.

    Raises:
        ValueError: if a number is out of its range.
    """

    warmup_epochs: int = 0
    later_lr_factor: float = 1.0

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise ValueError(
                f"warmup_epochs is {self.warmup_epochs}: it must be at least 0, which leaves the warm-up out"
            )
        if not 0 < self.later_lr_factor < math.inf:
            raise ValueError(f"later_lr_factor is {self.later_lr_factor}: it must be positive; 1 changes nothing")

    def warmup_of(self, epochs: int) -> int:
        """Computes the warm-up epochs of a task: a tenth of the task if ``warmup_epochs`` is not shorter."""
        return self.warmup_epochs if self.warmup_epochs < epochs else epochs // 10

    def tell_cuts(self, epochs_per_task: Iterable[int]) -> None:
        """Logs each task length that cuts the warm-up, given the lengths of all tasks but the first."""
        for epochs in sorted({epochs for epochs in epochs_per_task if epochs <= self.warmup_epochs}):
            rank_zero_info(
                f"warmup_epochs is {self.warmup_epochs}, and a task has {epochs} epochs in all: its warm-up is "
                f"cut to {self.warmup_of(epochs)} epochs, a tenth of the task"
            )
