import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses.temperature import check_temperature
from losses.unit import unit


class NCE(nn.Module):
    """Noise-contrastive estimation of the softmax over all instances (Wu et al., 2018, arXiv:1805.01978, Section 3.2).

    The probability that a feature f belongs to instance i, P(i|f) = exp(vᵢ·f / τ) / Z over n instances with a constant
    Z, is learned by distinguishing the instance from m that are drawn uniformly from all n, with
    h = P / (P + m / n): -log h(i, f) - Σ log(1 - h(j, f)), the sum over the m drawn.
    Computed in float32, or float64 for float64 input.

    Args:
        temperature: softmax temperature τ for the similarities, > 0.

    Raises:
        ValueError: if the temperature is not a positive number.
    """

    def __init__(self, temperature: float = 0.07) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, feature: Tensor, positive: Tensor, noise: Tensor, instances: int, log_z: Tensor) -> Tensor:
        """Computes the loss, the mean over N features.

        Args:
            feature: [N, D]; need not be normalised.
            positive: the unit vector of each feature's own instance [N, D].
            noise: the unit vectors of the m instances drawn [m, D]; all features share them.
            instances: n.
            log_z: log Z, a scalar, as the method ``log_z`` estimates it.

        Returns:
            A scalar.
        """
        feature = unit(feature)
        odds = -log_z - math.log(len(noise) / instances)  # log(P / (m / n)), but for the logit
        own = (feature * positive).sum(1) / self.temperature + odds  # [N]
        others = self._logits(feature, noise) + odds  # [N, m]
        return (F.softplus(-own) + F.softplus(others).sum(1)).mean()

    @torch.no_grad()
    def log_z(self, feature: Tensor, noise: Tensor, instances: int) -> Tensor:
        """Estimates log Z from the m instances drawn: Z = n / m Σ exp(vⱼ·f / τ), the mean over features.

        Args:
            feature: [N, D]; need not be normalised.
            noise: the unit vectors of the m instances drawn [m, D].
            instances: n.

        Returns:
            A scalar.
        """
        logits = self._logits(unit(feature), noise)
        return logits.logsumexp((0, 1)) + math.log(instances / logits.numel())

    def _logits(self, feature: Tensor, noise: Tensor) -> Tensor:
        with torch.autocast(feature.device.type, enabled=False):
            return (feature / self.temperature) @ noise.T
