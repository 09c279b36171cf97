"""What the losses on unit vectors share."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def unit(z: Tensor) -> Tensor:
    """Scales vectors [N, D] to length one, in float32, or float64 for float64 input."""
    return F.normalize(z if z.dtype == torch.float64 else z.float(), dim=1)


def check_temperature(temperature: float) -> float:
    """Gives the temperature back.

    Raises:
        ValueError: if it is not a positive number.
    """
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}: it must be a positive number; papers use 0.07 to 1")
    return temperature
