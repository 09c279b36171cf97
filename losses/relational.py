"""Relational knowledge distillation: matches relations between images, not single outputs (arXiv:1904.05068)."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from losses.feature import FeatureLoss
from losses.precision import at_least_float32


class RelationalDistance(FeatureLoss):
    """Matches the student's distances between images to the teacher's (RKD-D: Park et al., 2019).

    For every pair, the distance ‖xᵢ - xⱼ‖ divided by its mean over all pairs of two images; the loss is the Huber loss
    of the student's and the teacher's, the mean over all B² pairs, as published code takes it (there, an image and
    itself are a pair too, of loss 0). Published weight: 25. Moving, turning or scaling all images changes nothing, and
    layers of any two shapes fit. Computed in float32, or float64 for float64 input.
    """

    compares_images = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        """Computes the loss of B images, those of all devices.

        Args:
            student: [B, ...].
            teacher: [B, ...]; it gets no gradient.

        Returns:
            A scalar.
        """
        return F.smooth_l1_loss(_relative(_distances(student)), _relative(_distances(teacher.detach())))


class RelationalAngle(FeatureLoss):
    """Matches the student's angles between images to the teacher's (RKD-A: Park et al., 2019).

    For every triplet, the cosine of the angle at xⱼ between xᵢ and xₖ; the loss is the Huber loss of the student's and
    the teacher's, the mean over all B³ triplets, as published code takes it (there, one image may be in a triplet more
    than once; an angle at a side of no length has the cosine 0). Published weight: 50. Moving, turning or scaling all
    images changes nothing, and layers of any two shapes fit. Computed in float32, or float64 for float64 input, for a
    few vertices j at a time: memory grows with B², work with B³.
    """

    compares_images = True

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:  # type: ignore[override]
        """Computes the loss of B images, those of all devices.

        Args:
            student: [B, ...].
            teacher: [B, ...]; it gets no gradient.

        Returns:
            A scalar.
        """
        ours, theirs = _distances(student), _distances(teacher.detach())
        size = max(1, _tile_elements(ours) // max(1, ours.numel()))
        total = ours.new_zeros(())
        for start in range(0, len(ours), size):
            vertices = slice(start, start + size)
            # Cosines are recomputed for the gradient; only the distances are kept.
            total = total + checkpoint(_angular, ours, theirs, vertices, use_reentrant=False, preserve_rng_state=False)
        return total / max(1, len(ours)) ** 3


def _angular(ours: Tensor, theirs: Tensor, vertices: slice) -> Tensor:
    return F.smooth_l1_loss(_cosines(ours, vertices), _cosines(theirs, vertices), reduction="sum")


def _cosines(distances: Tensor, vertices: slice) -> Tensor:
    """Cosines of the angles at the given vertices between all pairs of images, [V, B, B], from the three sides."""
    sides = distances[vertices]  # [V, B]
    squares = sides.square()
    inner = (squares[:, :, None] + squares[:, None, :] - distances.square()) / 2  # the law of cosines
    lengths = sides[:, :, None] * sides[:, None, :]
    cosines = inner / lengths.where(lengths > 0, 1)
    return cosines.where(lengths > 0, 0).clamp(-1, 1)  # rounding may lead out, where one side is far shorter


def _distances(layer: Tensor) -> Tensor:
    distances: Tensor = _Distances.apply(at_least_float32(layer.flatten(1)))
    return distances  # [B, B]


class _Distances(Function):
    """Differentiable once. Where two images are at one place, there is no direction to go, and no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # From differences: taken from inner products, the distances of near images would be lost to rounding.
        distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
        ctx.save_for_backward(x, distances)
        return distances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, distances = ctx.saved_tensors
        weight = ((grad + grad.T) / distances).where(distances > 0, 0)
        x = x - x.mean(0)  # differences stay, and what is rounded is smaller
        with torch.autocast(x.device.type, enabled=False):
            return weight.sum(1, keepdim=True) * x - weight @ x  # Σⱼ wᵢⱼ (xᵢ - xⱼ), none of which is stored


def _relative(distances: Tensor) -> Tensor:
    """Divides by the mean over the pairs of two images; where all are at one place, all stay 0."""
    n = len(distances)
    mean = distances.sum() / max(1, n * (n - 1))
    return distances / mean.where(mean > 0, 1)


def _tile_elements(distances: Tensor) -> int:
    """Sixteen megabytes in float32 on a CPU; elsewhere, starting a kernel costs more than memory."""
    return 2**22 if distances.device.type == "cpu" else 2**25
