from collections.abc import Sequence

from torch import Tensor

from losses.feature import FeatureLoss
from losses.layers import directions, of_one_size
from losses.precision import at_least_float32


class AttentionTransfer(FeatureLoss):
    """Matches a student's attention maps to its teacher's (Zagoruyko & Komodakis, 2017, arXiv:1612.03928, Eq. 2).

    The attention map Q of a layer A is Σ |A|ᵖ over its channels; maps are compared as directions, Q / ‖Q‖₂, which
    forgets their scale. The loss is the mean square of the difference, over positions and images, as published code
    takes it (its weight is 1000 for each layer; Tian et al., 2020, arXiv:1910.10699); Equation 2 has the distance of
    the maps, not squared. Where the maps differ in size, the larger layer is averaged down to the smaller first.
    Computed in float32, or float64 for float64 input.

    Args:
        p: exponent of the activations, >= 1. A larger exponent gives more weight to the strongest activations.

    Raises:
        ValueError: if the exponent is below 1.
    """

    def __init__(self, p: float = 2.0) -> None:  # 2: published code
        super().__init__()
        if not 1 <= p < float("inf"):
            raise ValueError(f"p is {p}: the exponent of the activations must be at least 1; papers use 1 to 4")
        self.p = p

    def build(self, student: Sequence[int], teacher: Sequence[int], images: int) -> None:
        """Checks that both layers are maps (channels, height, width); there are no parameters.

        Raises:
            ValueError: if they are not.
        """
        if len(student) != 3 or len(teacher) != 3:
            raise ValueError(
                f"an image's layer is {list(student)} of the student, {list(teacher)} of the teacher: attention "
                "transfer needs maps [channels, height, width]; name a layer before the pooling"
            )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        """Computes the loss of B images.

        Args:
            student: [B, channels, height, width]; an image without any activation has the map 0, and no gradient.
            teacher: likewise, of any channels and size; it gets no gradient.

        Returns:
            A scalar.
        """
        student, teacher = of_one_size(at_least_float32(student), at_least_float32(teacher.detach()))
        return (self._attention(student) - self._attention(teacher)).square().mean()

    def _attention(self, layer: Tensor) -> Tensor:
        return directions(layer.abs().pow(self.p).sum(1).flatten(1))  # [B, height · width]
