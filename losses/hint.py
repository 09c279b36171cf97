from collections.abc import Sequence

import torch
from torch import Tensor, nn

from losses.feature import FeatureLoss
from losses.layers import of_one_size
from losses.precision import at_least_float32


class Hint(FeatureLoss):
    """A regressor predicts the teacher's layer from the student's (FitNets: Romero et al., 2015, arXiv:1412.6550).

    Half the squared distance of teacher and prediction, ½ ‖t - r(s)‖² (Equation 3), the mean over the images. The
    regressor r is learned with the student: a 1 x 1 convolution for maps, a linear map for vectors. Where the maps
    differ in size, the larger is averaged down to the smaller first; the paper's regressor has a larger kernel instead,
    which only fits a larger student's map. Computed in float32, or float64 for float64 input; the regressor in the
    precision of its weights.

    Args:
        average: whether to divide by the number of elements of the teacher's layer, so that layers of all sizes weigh
            alike. It is then half of what published code takes, the mean squared error: its weight of 100 (Tian et
            al., 2020, arXiv:1910.10699) is 200 here.
    """

    def __init__(self, average: bool = True) -> None:
        super().__init__()
        self.average = average
        self.regressor: nn.Module | None = None

    def build(self, student: Sequence[int], teacher: Sequence[int], images: int) -> None:
        """Makes the regressor, from layers (channels, height, width), (tokens, width) or (width,), for one image.

        Raises:
            ValueError: if one is a map and the other is not, or they differ in tokens.
        """
        tokens = len(student) == 2
        if len(student) != len(teacher) or not 1 <= len(student) <= 3 or (tokens and student[0] != teacher[0]):
            raise ValueError(
                f"an image's layer is {list(student)} of the student, {list(teacher)} of the teacher: a hint needs two "
                "maps [channels, height, width], as many tokens [tokens, width], or two vectors [width]"
            )
        self.regressor = (
            nn.Conv2d(student[0], teacher[0], 1) if len(student) == 3 else nn.Linear(student[-1], teacher[-1])
        )

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        """Computes the loss of B images.

        Args:
            student: of the shape that ``build`` was given, [B, ...].
            teacher: likewise; it gets no gradient.

        Returns:
            A scalar.

        Raises:
            RuntimeError: before ``build``.
        """
        if self.regressor is None:
            raise RuntimeError("Hint has no regressor yet: call build() with the shapes of the two layers first")
        teacher = teacher.detach()
        if student.ndim == 4:
            student, teacher = of_one_size(student, teacher)
        with torch.autocast(student.device.type, enabled=False):
            prediction = self.regressor(student.to(next(self.regressor.parameters()).dtype))
        squares = (at_least_float32(prediction) - at_least_float32(teacher)).square() / 2
        return squares.mean() if self.average else squares.sum() / len(squares)
