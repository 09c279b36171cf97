import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Converts half precision to float32: sums and logarithms of it would be too coarse.

    Tensors in float32, float64 or an integer type are returned as they are.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x
