"""Long work of a run: its processes share it, or wait for the one that does it, however long that takes."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Trainer

from datamodules.loading.processes import are_several

T = TypeVar("T")

LIMIT = timedelta(days=1)  # of a single wait; gloo notices at once if a process it waits for is gone


class Together:
    """Deals work to the processes of a run, and lets them wait for each other longer than other exchanges allow.

    A device may wait for the others for 30 minutes, and is then taken to be lost. Work outside of training steps can
    take longer. It waits in a group of its own, on the CPU, whose limit is ``LIMIT``. With one process, there is
    nothing to wait for.

    Args:
        trainer: Trainer whose processes work. All of them have to create the object, and to make the same calls.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.world_size, self.rank = trainer.world_size, trainer.global_rank
        several = trainer.world_size > 1 and are_several()
        self._group = _group(torch.distributed.group.WORLD) if several else None

    def results(self, jobs: Sequence[Callable[[], T]]) -> list[T]:
        """Does jobs, each on one process, in turns from the first to the last.

        Args:
            jobs: functions without arguments, the same on every process; the longest come first.

        Returns:
            Their results in order, on every process.

        Raises:
            Exception: that of a job that failed, on every process.
        """
        if self._group is None:
            return [job() for job in jobs]
        own: list[Any] = []
        error: Exception | None = None
        try:
            own = [job() for job in jobs[self.rank :: self.world_size]]
        except Exception as caught:  # the others wait for what comes
            error = caught
        everyones: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(everyones, (own, error), self._group)
        if errors := [each for _, each in everyones if each is not None]:
            raise error or errors[0]
        return [everyones[number % self.world_size][0][number // self.world_size] for number in range(len(jobs))]

    def of_first(self, job: Callable[[], T]) -> T:
        """Has the first process do a job; returns its result on every process."""
        return self.results([job])[0]

    def wait(self) -> None:
        """Waits until all processes are here."""
        self.of_first(lambda: None)


_groups: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # a reference would keep the threads of gloo alive


def _group(world: Any) -> Any:
    """One group for all waits of the processes, as long as they are joined."""
    if world not in _groups:
        _groups[world] = torch.distributed.new_group(backend="gloo", timeout=LIMIT)
    return _groups[world]
