import math
from abc import ABC, abstractmethod
from functools import cache
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler


class RunSchedule(LRScheduler, ABC):
    """A learning rate that is a closed-form function of the step and of the length of the run.

    A subclass writes ``factor``; the lr of each parameter group is that times the lr the optimiser was made with.
    It moves once per optimiser step. The length of a run is only known when it starts: until ``start`` the factor is 1.
    A checkpoint holds the step alone, so that a run resumed with another length or lr follows the new ones.

    Args:
        optimizer: whose learning rates are set.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.total_steps: int | None = None
        self.steps_per_epoch = 0.0
        super().__init__(optimizer)

    @abstractmethod
    def factor(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """Computes the factor of the lr.

        Args:
            step: the number of optimiser steps taken before this one: 0, ..., ``total_steps`` - 1 in a run, and
                ``total_steps`` when it is over.
            total_steps: of the run, positive.
            steps_per_epoch: optimiser steps in an epoch.
        """

    def start(self, total_steps: int, steps_per_epoch: float, step: int | None = None) -> None:
        """Sets the length of the run, and the lr of the next step.

        Args:
            total_steps: optimiser steps in the whole run, with those before a resume.
            steps_per_epoch: optimiser steps in an epoch.
            step: number of optimiser steps that are done, for a resumed run. If null, stays at the current step.

        Raises:
            ValueError: if the run has no end, or no step.
        """
        if not 0 < total_steps < math.inf:
            raise ValueError(
                f"{type(self).__name__} needs to know the length of the run, but that has {total_steps} steps: "
                f"set max_epochs or max_steps"
            )
        if not 0 < steps_per_epoch < math.inf:
            raise ValueError(f"steps_per_epoch is {steps_per_epoch}: it must be positive and finite")
        self.total_steps = int(total_steps)
        self.steps_per_epoch = float(steps_per_epoch)
        if step is not None:
            self.last_epoch = step
        self._set()

    def step(self, epoch: int | None = None) -> None:
        """Sets the lr for the next step; to be called after each step of the optimiser, without arguments.

        Raises:
            RuntimeError: if ``start`` was not called.
        """
        if self.total_steps is None and self.last_epoch >= 0:  # torch's constructor steps to 0
            raise RuntimeError(f"{type(self).__name__} does not know the length of the run: call start() before step()")
        super().step(epoch)

    def get_lr(self) -> list[Any]:
        """The lr of each parameter group at the current step."""
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:  # added since
            self.base_lrs.append(group.setdefault("initial_lr", group["lr"]))
        if self.total_steps is None:
            return list(self.base_lrs)
        factor = self.factor(min(self.last_epoch, self.total_steps), self.total_steps, self.steps_per_epoch)
        return [lr * factor for lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        """The step alone."""
        return {"step": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes to the step of ``state_dict``, and sets the lr for it."""
        self.last_epoch = state_dict["step"]
        self._set()

    def _set(self) -> None:
        self._last_lr = self.get_lr()
        for group, initial, lr in zip(self.optimizer.param_groups, self.base_lrs, self._last_lr):
            group["initial_lr"] = initial  # loading the optimiser's state has brought that of the checkpoint
            group["lr"] = lr


class WarmupCosine(RunSchedule):
    """Linear warm-up from zero, then half a cosine without restarts (Loshchilov & Hutter, 2017, arXiv:1608.03983).

    With T steps in the run and W = round(warmup_epochs × steps per epoch), the lr of step t = 0, ..., T - 1 is its
    maximum times

    - (t + 1) / (W + 1) for t < W: the first step already moves, and step W is the first at the maximum (the gradual
      warm-up of Goyal et al., 2017, arXiv:1706.02677, Section 2.2; SimCLR's code has t / W, whose first step is idle);
    - final + (1 - final) (1 + cos(pi (t - W) / (T - W))) / 2 from then on. It would reach ``final`` at t = T, one step
      after the last, so that with final 0 no step is idle (as SimCLR's code and torch's CosineAnnealingLR do).

    A run that is shorter than its warm-up has a warm-up of a tenth of the run, W = round(T / 10), and one line in the
    log says so.

    Args:
        optimizer: whose learning rates are set.
        warmup_epochs: length of the warm-up in epochs, >= 0 (SimCLR, Section 2.2: 10).
        final: share of the lr that is left when the run is over, >= 0.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, optimizer: Optimizer, warmup_epochs: float = 10, final: float = 0.0) -> None:
        if not 0 <= warmup_epochs < math.inf:
            raise ValueError(f"warmup_epochs is {warmup_epochs}: it must be at least 0")
        if not 0 <= final < math.inf:
            raise ValueError(f"final is {final}: it must be at least 0")
        self.warmup_epochs = warmup_epochs
        self.final = final
        super().__init__(optimizer)

    def start(self, total_steps: int, steps_per_epoch: float, step: int | None = None) -> None:
        """Sets the length of the run; see ``RunSchedule.start``. Logs a line if the warm-up does not fit into it."""
        super().start(total_steps, steps_per_epoch, step)
        asked, own = round(self.warmup_epochs * steps_per_epoch), self.warmup_steps(total_steps, steps_per_epoch)
        if asked != own:
            _say(
                f"the warm-up of {self.warmup_epochs:g} epochs ({asked} steps) is longer than the run of {total_steps} "
                f"steps: it is cut to {own} steps, a tenth of the run"
            )

    def warmup_steps(self, total_steps: int, steps_per_epoch: float) -> int:
        """W, the number of optimiser steps below the maximum at the start of a run of so many steps."""
        asked = round(self.warmup_epochs * steps_per_epoch)
        return asked if asked <= total_steps else round(total_steps / 10)

    def factor(self, step: int, total_steps: int, steps_per_epoch: float) -> float:
        """Computes the factor of the lr at a step; see the class."""
        warmup = self.warmup_steps(total_steps, steps_per_epoch)
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if step >= total_steps:
            return self.final
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * (step - warmup) / (total_steps - warmup))) / 2


@cache
def _say(line: str) -> None:
    """Logs a line, once in a process: the schedule of every task of a sequence would say the same."""
    rank_zero_info(line)
