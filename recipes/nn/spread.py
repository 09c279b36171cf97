from torch import Tensor
from torch.nn import functional as F


def feature_std(feature: Tensor) -> Tensor:
    """Spread of features over the sphere: 1 if they spread evenly, 0 if all are equal.

    The standard deviation of each dimension of the L2-normalised features, averaged over the dimensions, × √F. (Chen &
    He, 2021, arXiv:2011.10566, Section 4.1, plot it without the √F, where an even spread is 1 / √F.)

    Args:
        feature: float [N, F].
    """
    return F.normalize(feature).std(0, correction=0).mean() * feature.shape[1] ** 0.5
