"""Whether features collapse to a few dimensions."""

import torch
from torch import Tensor


def effective_rank(feature: Tensor) -> Tensor:
    """How many dimensions features use (RankMe: Garrido et al., 2023, arXiv:2210.02885, Equation 1).

    The exponential of the entropy of p_k = σ_k / Σσ + 1e-7, with the singular values σ of the matrix of features.
    Between 1 and min(N, F); NaN if features are not finite.

    Args:
        feature: float [N, F].
    """
    if not feature.isfinite().all():
        return feature.new_tensor(float("nan"))
    sigma = torch.linalg.svdvals(feature)
    p = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny) + 1e-7
    return (-(p * p.log()).sum()).exp()
