"""How images are read: the properties that a network's images share, whatever DataModule they come from."""

from collections.abc import Mapping
from typing import Any, NamedTuple

LARGEST_SIZE = 2**14  # of an image: more than a gigabyte in floating point numbers, each

ValueRange = tuple[float, float]


class Reading(NamedTuple):
    """How images are read; null where it is not known.

    Attributes:
        image_size: height and width of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        value_range: pixel values that become black and white, see ``ImageFolder``.
    """

    image_size: int | None = None
    channels: int | None = None
    value_range: ValueRange | None = None

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> "Reading":
        """How the images of the run that wrote a checkpoint were read; runs of version 0.1 state their shape alone."""
        saved = checkpoint.get("reading")
        if isinstance(saved, Mapping):
            return cls(*(_CHECKS[name](saved.get(name)) for name in cls._fields))
        shape = checkpoint.get("image_shape")
        if isinstance(shape, list | tuple) and len(shape) == 3 and shape[1] == shape[2]:
            return cls(_size(shape[1]), _channels(shape[0]))
        return cls()

    def filled(self, other: "Reading") -> "Reading":
        """This reading, with the values of another one where there are none."""
        return Reading(*(theirs if ours is None else ours for ours, theirs in zip(self, other)))

    def differences(self, other: "Reading") -> str:
        """Says in what two readings differ, ours first: of the properties that both know."""
        words = []
        if self.image_size and other.image_size and self.image_size != other.image_size:
            words.append(
                f"at {self.image_size}×{self.image_size} pixels instead of {other.image_size}×{other.image_size}"
            )
        if self.channels and other.channels and self.channels != other.channels:
            words.append(f"with {self.channels} instead of {other.channels} channels")
        if self.value_range and other.value_range and self.value_range != other.value_range:
            words.append(f"with value_range {[*self.value_range]} instead of {[*other.value_range]}")
        return " and ".join(words)


def _size(value: Any) -> int | None:
    return value if isinstance(value, int) and 1 <= value <= LARGEST_SIZE else None


def _channels(value: Any) -> int | None:
    return value if isinstance(value, int) and value in (1, 3) else None


def _range(value: Any) -> ValueRange | None:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(end, int | float) for end in value):
        return None
    black, white = value
    return (black, white) if -float("inf") < black < white < float("inf") else None


_CHECKS = {"image_size": _size, "channels": _channels, "value_range": _range}
