"""How well an encoder suits a target, from features and labels alone, without training it.

Each score ranks encoders on one target. Its height depends on the numbers of classes, images and features, so that
scores on different targets say nothing about each other. All are computed in float64.
"""

import math

import torch
from torch import Tensor

_ITERATIONS = 1000  # of the fixed point; a few are enough but where the labels are fitted exactly
_SPAN = 1e12  # α / β stays within this factor of the largest eigenvalue


def h_score(feature: Tensor, label: Tensor) -> float:
    """Regularised H-score (Ibrahim et al., 2021, arXiv:2110.06893): how much of the features' variance says the class.

    (1 - a) tr(Σ⁻¹ B), where B is the covariance of the features' class means, the classes weighed by their images, and
    Σ = (1 - a) S + a tr(S) / F · I the covariance S of the features, shrunk as by Ledoit & Wolf (2004, Journal of
    Multivariate Analysis 88). All covariances are means over the N images. Without shrinkage (a = 0) it is the H-score
    of Bao et al. (2019).

    Higher is better: 0 where all classes have the same mean, and at most min(classes - 1, F), which is nearly reached
    where classes are far apart.

    Args:
        feature: [N, F].
        label: int64 [N], from 0 on.

    Returns:
        The score, in [0, min(classes - 1, F)].

    Raises:
        ValueError: if there are no features, or they and the labels do not fit.
    """
    x = checked(feature, label)
    x = x - x.mean(0)
    images, width = x.shape
    u, eigenvalue = _thin_svd(x)  # of X Xᵀ: N times those of S
    if not len(eigenvalue):
        return 0.0
    norm = eigenvalue.square().sum() / images**2  # of S, squared: that of Frobenius
    mean = eigenvalue.sum() / images / width  # of the eigenvalues of S
    distance = norm - width * mean.square()  # ||S - mean I||²
    noise = (x.square().sum(1).square().sum() / images - norm) / images  # of S: Σ ||x xᵀ - S||² / N²
    if distance <= 1e-12 * norm:
        shrinkage = 0.0  # S is what it would be shrunk towards
    else:
        shrinkage = float((noise / distance).clamp(0, 1))

    count = torch.bincount(label)
    member = torch.nn.functional.one_hot(label).double()[:, count > 0]  # [N, C]
    # sqrt(n / N) times the class means, in the basis of the principal directions: all class means lie in their span
    between = eigenvalue.sqrt()[:, None] * (u.T @ member) / (count[count > 0] * images).sqrt()  # [K, C]
    shrunk = (1 - shrinkage) * eigenvalue / images + shrinkage * mean  # [K]
    return float((1 - shrinkage) * (between.square().sum(1) / shrunk).sum())


def log_me(feature: Tensor, label: Tensor, num_classes: int) -> float:
    """LogME (You et al., 2021, arXiv:2102.11005; You et al., 2022, arXiv:2110.10545): the evidence for a linear model.

    For each class, y ∈ {0, 1} [N] says which images are of it. With weights w ~ N(0, I / α) and noise N(0, 1 / β), the
    evidence of y = X w + noise is that of a normal distribution, p(y | X, α, β) = N(y; 0, I / β + X Xᵀ / α). LogME is
    its logarithm where α and β make it largest, divided by N, the mean over the classes that have images.

    The fixed point of the second paper is iterated on t = α / β, for all classes at once, in the basis of the thin
    singular value decomposition X = U S Vᵀ. The evidence is then that of t and its best β, in closed form.

    Higher is better. Labels that are fitted exactly have no largest evidence; t ends at 10⁻¹² of the largest
    eigenvalue of X Xᵀ.

    Args:
        feature: [N, F]. It is neither centred nor scaled, as in the paper.
        label: int64 [N], from 0 on.
        num_classes: how many classes there are.

    Returns:
        The score, a log density: of either sign.

    Raises:
        ValueError: if there are no features, or they and the labels do not fit.
    """
    x = checked(feature, label, num_classes)
    images = len(x)
    y = torch.nn.functional.one_hot(label, num_classes).double()
    y = y[:, y.any(0)]  # [N, C]
    u, eigenvalue = _thin_svd(x)  # [N, K], [K]
    projected = (u.T @ y).square()  # of y onto each direction, squared: [K, C]
    outside = (y.square().sum(0) - projected.sum(0)).clamp(min=0)  # [C]
    eigenvalue = eigenvalue[:, None]
    largest = float(eigenvalue.max()) if len(eigenvalue) else 1.0
    t = torch.ones_like(outside)
    for _ in range(_ITERATIONS):
        before = t
        effective = (eigenvalue / (eigenvalue + t)).sum(0)  # γ, the number of directions that the labels determine
        weight = (eigenvalue * projected / (eigenvalue + t).square()).sum(0)  # ||w||²
        residual = (projected * (t / (eigenvalue + t)).square()).sum(0) + outside  # ||y - X w||²
        t = (effective * residual) / ((images - effective) * weight)  # α = γ / ||w||², β = (N - γ) / ||y - X w||²
        t = t.nan_to_num(largest * _SPAN).clamp(largest / _SPAN, largest * _SPAN)
        if ((t - before).abs() <= 1e-8 * before).all():
            break
    variance = ((projected * t / (eigenvalue + t)).sum(0) + outside) / images  # 1 / β, best for t
    log_determinant = (eigenvalue / t).log1p().sum(0)
    evidence = -(math.log(2 * math.pi) + 1 + variance.log() + log_determinant / images) / 2
    return float(evidence.mean())


def leep(probability: Tensor, label: Tensor, num_classes: int) -> float:
    """LEEP, the log expected empirical prediction (Nguyen et al., 2020, arXiv:2002.12462).

    The encoder's own classifier predicts the probability p(z | x) of its source class z for an image x of the target.
    The target images give P(y | z) = P(y, z) / P(z) for their classes y, where P(y, z) is the mean over all images of
    p(z | x) · 1[x is of y]. LEEP is the mean over all images of log Σ_z P(y | z) p(z | x), where y is the class of x.
    Classes z with probability zero for all images are skipped.

    Higher is better. LEEP is 0 if the source class determines the target class. The minimum is minus the entropy of the
    labels, reached by a classifier with the same output for every image.

    Args:
        probability: p(z | x) [N, S], each row of sum 1.
        label: int64 [N], from 0 on.
        num_classes: number of classes of the target.

    Returns:
        The score, at most 0.

    Raises:
        ValueError: if there are no images, or probabilities and labels do not fit.
    """
    p = checked(probability, label, num_classes)
    joint = torch.nn.functional.one_hot(label, num_classes).double().T @ p  # N P(y, z): [classes, S]
    mass = joint.sum(0)
    conditional = torch.where(mass > 0, joint / mass, 0)  # P(y | z)
    return float((conditional[label] * p).sum(1).log().mean())


def checked(feature: Tensor, label: Tensor, num_classes: int | None = None) -> Tensor:
    """Returns features [N, F] of images of the classes [N], in float64.

    Raises:
        ValueError: if there are no features, or they and the labels do not fit.
    """
    if feature.ndim != 2 or label.shape != feature.shape[:1] or not feature.numel():
        raise ValueError(
            f"features are {list(feature.shape)} and labels {list(label.shape)}: they must be [N, F] and [N], "
            "with at least one image"
        )
    low, high = int(label.min()), int(label.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        allowed = "from 0 on" if num_classes is None else f"from 0 to {num_classes - 1}"
        raise ValueError(f"labels are {low} to {high}: they must be {allowed}; leave out images without a label")
    return feature.double()


def _thin_svd(x: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors [N, K] and squared singular values [K] of x [N, F], without those that are next to zero.

    They are taken from the smaller of XᵀX and XXᵀ, which is several times faster.
    """
    tall = len(x) > x.shape[1]
    eigenvalue, vector = torch.linalg.eigh(x.T @ x if tall else x @ x.T)
    kept = eigenvalue > max(1e-12 * eigenvalue[-1], 0)  # singular values from a millionth of the largest on
    eigenvalue, vector = eigenvalue[kept], vector[:, kept]
    return (x @ vector / eigenvalue.sqrt() if tall else vector), eigenvalue
