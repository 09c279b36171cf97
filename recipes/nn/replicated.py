from collections.abc import Iterable, Iterator

from torch import Tensor

from recipes.nn.precision import AtLeastFloat32


class Replicated(AtLeastFloat32):
    """A module whose buffers are the same on every device: each device computes all of them.

    A ``Recipe`` has DDP leave them alone, which would send those of the first device to the others at every step.
    They stay in float32 or wider at every precision of the Trainer.
    """


class TensorList(Replicated):
    """Tensors as buffers, in their order: they move with the module, and are in its checkpoints.

    Args:
        tensors: of any shapes; they are not copied.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        super().__init__()
        for number, tensor in enumerate(tensors):
            self.register_buffer(str(number), tensor)

    def __iter__(self) -> Iterator[Tensor]:
        return self.buffers()
