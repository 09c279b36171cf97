import torch
from torch import Tensor

from recipes.augment.base import to_float
from recipes.augment.random import Key, uniform


def normal(key: Key, n: int) -> Tensor:
    """Draws n standard normal random numbers for every sample of a key, from as many uniform ones.

    Args:
        key: for what the numbers are drawn.
        n: how many numbers a sample gets.

    Returns:
        Float [B, n] in [-5.5, 5.5], on the device of ``key.index``.
    """
    return torch.special.ndtri(to_float(uniform(key, n)).clamp_(min=2**-25))  # 0 would be -inf
