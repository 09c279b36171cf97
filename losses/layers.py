"""Functions that the losses on layers share."""

import torch
from torch import Tensor
from torch.nn import functional as F


def of_one_size(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Averages the larger of two maps [B, C, H, W] down to the height and width of the smaller.

    As published code does for attention maps (Tian et al., 2020, arXiv:1910.10699); the channels stay as they are.
    """
    size = min(student.shape[2], teacher.shape[2]), min(student.shape[3], teacher.shape[3])
    return _averaged(student, size), _averaged(teacher, size)


def _averaged(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)


def directions(x: Tensor) -> Tensor:
    """Scales vectors [N, D] to length one; those that are zero stay so, and get the gradient of an unscaled one."""
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return x / length.where(length > 0, 1)
