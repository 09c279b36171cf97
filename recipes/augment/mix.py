import torch
from torch import Tensor, nn

from recipes.augment.keys import Key, uniform

_POINTS = 4097  # of the quantile function of the beta distribution


class Mix(nn.Module):
    """Mixes neighbours of a batch: mixup (Zhang et al., 2018, arXiv:1710.09412) and CutMix (Yun et al., 2019).

    With λ from a Beta(α, α) distribution, mixup makes λ x + (1 - λ) x' of an image x and its partner x', and CutMix
    (arXiv:1905.04899, Section 3.1) pastes a box of (1 - λ) of the area of x' into x; where the box leaves the image, λ
    is what is left of x. Partners are the first and second image of the batch, the third and fourth, and so on: the
    order of a batch is random already, and neighbours stay together when each device gets an even number of it. Both
    images of a pair have the same λ and the same box. The last image of an odd batch is left alone.

    Args:
        mixup: α of mixup, >= 0 (Zhang et al., Section 3: 0.1 to 0.4 for ImageNet, 1 for CIFAR-10); 0 leaves it out.
        cutmix: α of CutMix, >= 0 (Yun et al., Section 4.1: 1); 0 leaves it out. With both, half of the pairs get each.

    Raises:
        ValueError: if an α is negative, or both are 0.
    """

    quantiles: Tensor

    def __init__(self, mixup: float = 0.0, cutmix: float = 0.0) -> None:
        super().__init__()
        for name, value in (("mixup", mixup), ("cutmix", cutmix)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}: it must be at least 0 (leaves it out)")
        if mixup == cutmix == 0:
            raise ValueError("mixup and cutmix are both 0: there is nothing to mix")
        self.cutmix_share = 0.0 if not cutmix else 1.0 if not mixup else 0.5
        tables = torch.stack([_beta_quantiles(alpha or 1.0) for alpha in (mixup, cutmix)])
        self.register_buffer("quantiles", tables, persistent=False)

    def forward(self, image: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """Mixes float images.

        Args:
            image: [B, C, H, W].
            key: of the batch; the first image of each pair draws for both.

        Returns:
            The mixed images [B, C, H, W], and λ [B]: how much of each image is itself. The rest is its partner, whose
            label is ``partners(label)``.
        """
        height, width = image.shape[-2:]
        number = uniform(key, 4)  # [B, 4]
        number[1::2] = number[: len(number) - len(number) % 2 : 2]
        cut = number[:, 0] < self.cutmix_share  # [B]
        share = self._quantile(cut.long(), number[:, 1])  # λ, [B]

        half = (1 - share).clamp(min=0).sqrt() / 2  # of the box's side, as a share of the image's
        top, bottom = _sides(number[:, 2], half, height)
        left, right = _sides(number[:, 3], half, width)
        row, column = torch.arange(height, device=image.device), torch.arange(width, device=image.device)
        inside = ((row >= top) & (row < bottom))[:, :, None] & ((column >= left) & (column < right))[:, None]  # [B,H,W]
        share = torch.where(cut, 1 - inside.flatten(1).to(share.dtype).mean(1), share)
        if len(image) % 2:
            share = torch.cat([share[:-1], torch.ones_like(share[:1])])

        other = partners(image)
        weight = torch.where(cut[:, None, None], 1 - inside.to(share.dtype), share[:, None, None])[:, None]  # [B,1,H,W]
        return torch.lerp(other, image, weight.to(image.dtype)), share

    def _quantile(self, table: Tensor, probability: Tensor) -> Tensor:
        """Inverts the distribution function by linear interpolation: table [B] says which, probability [B] where."""
        place = probability * (_POINTS - 1)
        below = place.floor().long().clamp(max=_POINTS - 2)
        low, high = self.quantiles[table, below], self.quantiles[table, below + 1]
        return torch.lerp(low, high, (place - below).to(low.dtype))


def partners(values: Tensor) -> Tensor:
    """Swaps neighbours: the values [B, ...] of the images that ``Mix`` mixes into each image."""
    order = torch.arange(len(values), device=values.device)
    even = len(values) - len(values) % 2
    order[:even] ^= 1
    return values[order]


def _sides(centre: Tensor, half: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First and behind the last pixel [B, 1] of boxes around centres that are anywhere in the image."""
    low, high = (((centre + sign * half) * size).round().clamp(0, size) for sign in (-1, 1))
    return low[:, None], high[:, None]


def _beta_quantiles(alpha: float) -> Tensor:
    """The quantile function of Beta(alpha, alpha) at equal distances in [0, 1]."""
    from scipy.special import betaincinv

    probability = torch.linspace(0, 1, _POINTS, dtype=torch.float64)
    return torch.from_numpy(betaincinv(alpha, alpha, probability.numpy())).float()
