"""Counts epochs, images and seconds of training."""

import time
from typing import Any, Self


class TrainingClock:
    """Counts the epochs, images and seconds of a training, over all its resumed parts.

    Attributes:
        epochs: number of whole epochs.
        images: number of images over all devices and epochs.
        seconds: time in batches and between them.
    """

    def __init__(self, epochs: int = 0, images: int = 0, seconds: float = 0.0) -> None:
        self.epochs, self.images, self.seconds = epochs, images, seconds
        self._last = 0.0

    def start(self) -> None:
        """Starts to count the time."""
        self._last = time.perf_counter()

    def count(self, images: int) -> None:
        """Counts the images of a batch, and the time since the last one."""
        self.images += images
        now = time.perf_counter()
        self.seconds += now - self._last
        self._last = now

    def protocol(self) -> dict[str, Any]:
        """Returns what ``evaluation.json`` states of the training."""
        minutes = round(self.seconds / 60, 4)
        return {"epochs": self.epochs, "training_images_seen": self.images, "training_minutes": minutes}

    def state_dict(self) -> dict[str, Any]:
        """Returns the counts, for a checkpoint."""
        return {"epochs": self.epochs, "images": self.images, "seconds": self.seconds}

    @classmethod
    def of(cls, state_dict: dict[str, Any]) -> Self:
        """Creates a clock that goes on from the counts of a checkpoint."""
        return cls(*(state_dict[name] for name in ("epochs", "images", "seconds")))
