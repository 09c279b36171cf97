from torch import Tensor
from torch.nn import functional as F

from losses.precision import at_least_float32


def unit(z: Tensor) -> Tensor:
    """Scales vectors [N, D] to length one, in float32, or float64 for float64 input."""
    return F.normalize(at_least_float32(z), dim=1)
