from typing import Any

import torch
from lightning.pytorch import Trainer

from datamodules.loading.processes import are_several


class Agreement:
    """Lets all processes of a run stop at the same batch, although only one of them has a reason to.

    A process that stopped alone would leave the others waiting for it. Every process gives its wish after every
    batch, and gets the largest wish of all processes at its next call. The exchange runs beside the training: nothing
    waits for a device, and no process waits for another longer than its next batch does. With one process, the answer
    is immediate.

    Args:
        trainer: Trainer whose processes agree. All of them have to create the object, and to make the same calls.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None
        if trainer.world_size > 1 and are_several():
            # a group of its own on the CPU, whatever the devices are: the order of other exchanges does not matter
            self._group = torch.distributed.new_group(backend="gloo")

    def settle(self, wish: int, at_once: bool = False) -> int:
        """Exchanges the wish of this process for the largest wish.

        Args:
            wish: number >= 0; 0 stands for no wish.
            at_once: whether to wait for the wishes of all processes of this call, not of the last one.

        Returns:
            The largest wish of all processes.
        """
        if self._group is None:
            return wish
        answer = self._answer()
        wishes = torch.tensor([max(wish, answer)])
        work = torch.distributed.all_reduce(wishes, torch.distributed.ReduceOp.MAX, self._group, async_op=True)
        self._asked = work, wishes
        return self._answer() if at_once else answer

    def everyones(self, value: Any) -> list[Any]:
        """Gathers a value of every process, in the order of their ranks; every process has to call it."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(values, value, self._group)
        return values

    def _answer(self) -> int:
        if self._asked is None:
            return 0
        work, wishes = self._asked
        self._asked = None
        work.wait()
        return int(wishes)
