"""State that half precision would spoil."""

from collections.abc import Callable

from torch import Tensor, nn

from losses.precision import at_least_float32


class AtLeastFloat32(nn.Module):
    """A module whose tensors are not converted to half precision, together with those of its submodules.

    For state that changes by small amounts, such as a moving average: bfloat16 rounds away changes below 1/256 of a
    number, so that the average would stand still. A Trainer with ``precision="bf16-true"`` therefore leaves this state
    in float32.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "AtLeastFloat32":
        def widened(tensor: Tensor) -> Tensor:
            given = fn(tensor)
            return given if at_least_float32(given) is given else at_least_float32(tensor).to(given.device)

        return super()._apply(widened, recurse)
