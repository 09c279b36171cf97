"""How images are read: the properties that a network's images share, whatever DataModule they come from."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

from lightning.pytorch.trainer.states import TrainerStatus

LARGEST_SIZE = 2**14  # of an image: more than a gigabyte in floating point numbers, each

ValueRange = tuple[float, float]


class Reading(NamedTuple):
    """How images are read; null where it is not known.

    Attributes:
        image_size: height and width of the images in pixels.
        channels: 1 (grey) or 3 (RGB).
        value_range: pixel values that become black and white, see ``ImageFolder``.
        for_training: names of images that are never for validation or testing, because the network was trained on them
            while their class had no others.
    """

    image_size: int | None = None
    channels: int | None = None
    value_range: ValueRange | None = None
    for_training: tuple[str, ...] | None = None

    @classmethod
    def of_checkpoint(cls, checkpoint: Mapping[str, Any]) -> "Reading":
        """How the images of the run that wrote a checkpoint were read; runs of version 0.1 state their shape alone."""
        saved = checkpoint.get("reading")
        if isinstance(saved, Mapping):
            return cls(
                _size(saved.get("image_size")),
                _channels(saved.get("channels")),
                _range(saved.get("value_range")),
                _names(saved.get("for_training")),
            )
        shape = checkpoint.get("image_shape")
        if isinstance(shape, list | tuple) and len(shape) == 3 and shape[1] == shape[2]:
            return cls(_size(shape[1]), _channels(shape[0]))
        return cls()

    def filled(self, other: "Reading") -> "Reading":
        """This reading, with the values of another one where there are none."""
        known = {name: value for name, value in self._asdict().items() if value is not None}
        return other._replace(**known).keeping(other)

    def keeping(self, other: "Reading") -> "Reading":
        """This reading, with the images of another one that are for training."""
        names = {*(self.for_training or ()), *(other.for_training or ())}
        return self._replace(for_training=tuple(sorted(names)) or None)

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


def _names(value: Any) -> tuple[str, ...] | None:
    whole = isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)
    return tuple(value) if whole else None


def _range(value: Any) -> ValueRange | None:
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(isinstance(end, int | float) for end in value):
        return None
    black, white = value
    return (black, white) if -float("inf") < black < white < float("inf") else None


class ReadsLikeNetwork:
    """Base of DataModules that read images as a trained network takes them, where their arguments leave that open.

    A value that is given as an argument comes first, then that of ``read_as``, then that of the Trainer's network (its
    attribute ``reading``), then the usual one.

    Attributes:
        sources: DataModules that this one wraps.
        reading_options: the argument for each field of a ``Reading`` that a subclass can choose.
        usual_reading: where neither an argument nor a network chooses.
    """

    sources: tuple[Any, ...] = ()
    reading_options: ClassVar[dict[str, str]] = {}
    usual_reading: ClassVar[Reading] = Reading()
    trainer: Any
    _stated = _of_network = Reading()
    _is_read_by_another = False

    def read_as(self, reading: Reading) -> None:
        """Reads the images like others, except where an argument says otherwise.

        Args:
            reading: how the others are read, such as those of a trained network.
        """
        self._read_like(reading, Reading())

    @property
    def reading_arguments(self) -> dict[str, Any]:
        """The arguments that say how images are read, as they were given or taken by ``read_as``."""
        given = {name: getattr(self._stated, field) for field, name in self.reading_options.items()}
        plain = {name: [*value] if isinstance(value, tuple) else value for name, value in given.items()}
        return {name: value for name, value in plain.items() if value is not None}

    @property
    def _chosen(self) -> Reading:
        """The values that hold now."""
        chosen = self._stated.filled(self._of_network).filled(self.usual_reading)
        fields = (*self.reading_options, "for_training")
        return Reading(**{field: getattr(chosen, field) for field in fields})

    @property
    def _all_chosen(self) -> tuple[Any, ...]:
        """The values that hold now, here and for each of the sources."""
        return (self._chosen, *(data._all_chosen for data in self.sources))

    def _ask_network(self) -> None:
        """Takes what the arguments leave open from the network of the run. Without a run, forgets earlier networks.

        What a DataModule wraps has no run of its own, although it may have had one before.
        """
        if self._is_read_by_another:
            return
        state = getattr(self.trainer, "state", None)
        runs = state is not None and state.status == TrainerStatus.RUNNING
        reading = getattr(self.trainer.lightning_module, "reading", None) if runs else None
        self._read_like(Reading(), reading if isinstance(reading, Reading) else Reading())

    @contextmanager
    def _reading_sources(self) -> Iterator[None]:
        """Has the sources read as this DataModule does, and not ask for themselves."""
        try:
            for data in self.sources:
                data._is_read_by_another = True
            yield
        finally:
            for data in self.sources:
                data._is_read_by_another = False

    def _read_like(self, lasting: Reading, network: Reading) -> None:
        """Takes what the arguments leave open, for good or until the next network."""
        for data in self.sources:
            data._read_like(lasting, network)
        self._stated, self._of_network = self._stated.filled(lasting), network
