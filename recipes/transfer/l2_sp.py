import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import functional as F

from losses.precision import at_least_float32
from recipes.nn import TensorList


class StartingPoint(TensorList):
    """The starting point of L2-SP (Li et al., 2018, arXiv:1802.01483): w⁰ of α/2 ||w - w⁰||².

    Checkpoints contain its tensors, so a resumed run has the same starting point.

    Args:
        parameters: w, at the start of the training; they are copied.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        super().__init__(parameter.detach().clone() for parameter in parameters)

    def squared_distance(self, parameters: Iterable[Tensor]) -> Tensor:
        """||w - w⁰||², a scalar, for the parameters in the same order."""
        pairs = zip(map(at_least_float32, parameters), self, strict=True)
        return torch.stack([F.mse_loss(parameter, start, reduction="sum") for parameter, start in pairs]).sum()


def check_l2_sp(strength: float) -> float:
    """Gives back the strength α of L2-SP.

    Raises:
        ValueError: if it is negative or infinite.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"l2_sp is {strength}: it must be at least 0 (leaves the penalty out)")
    return strength
