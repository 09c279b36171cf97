"""Measures the steps of a run."""

import statistics
import time
from typing import Any

from lightning.pytorch import Callback

WARMUP = 6  # steps


class Seconds(Callback):
    """Keeps the median time of a step, in ``last``."""

    last = 0.0

    def __init__(self) -> None:
        self._ends: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self._ends.append(time.perf_counter())

    def on_train_end(self, *_: Any) -> None:
        ends = self._ends[WARMUP:]
        Seconds.last = statistics.median(after - before for before, after in zip(ends, ends[1:]))
