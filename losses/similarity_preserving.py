import torch
from torch import Tensor

from losses.feature import FeatureLoss
from losses.layers import directions
from losses.precision import at_least_float32


class SimilarityPreserving(FeatureLoss):
    """Matches pairwise image similarities to the teacher's (Tung & Mori, 2019, arXiv:1907.09682).

    The inner products of all B images make the matrix Q Qᵀ, whose rows are scaled to length one; the loss is the
    squared Frobenius distance of the student's and the teacher's, divided by B². Layers of any two shapes fit. Computed
    in float32, or float64 for float64 input. Published weight: 3000.
    """

    compares_images = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        """Computes the loss of B images, those of all devices.

        Args:
            student: [B, ...]; where an image's layer is 0, its row is 0.
            teacher: [B, ...]; it gets no gradient.

        Returns:
            A scalar.
        """
        return (_similarities(student) - _similarities(teacher.detach())).square().mean()


def _similarities(layer: Tensor) -> Tensor:
    layer = at_least_float32(layer.flatten(1))
    with torch.autocast(layer.device.type, enabled=False):
        return directions(layer @ layer.T)  # [B, B]
