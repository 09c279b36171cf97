import math

import torch
from torch import Tensor

from recipes.augment.base import Views, between, check_probability, check_range, to_float
from recipes.augment.keys import Key, normal, uniform


class RandomErasing(Views):
    """Covers a random rectangle with noise (Zhong et al., 2020, arXiv:1708.04896).

    Rectangles are drawn as torchvision's ``RandomErasing`` draws them: whole pixels, at most ten tries, then none.

    DeiT covers them after normalisation, with normal noise for each pixel and channel. Normalisation comes later here,
    so the noise is around grey with a usual contrast, and is clipped to [0, 1]; after normalisation it is near a
    standard normal where the data's own mean and standard deviation are near ``mean`` and ``std``.

    Args:
        p: the share of images that are erased (DeiT, Touvron et al., 2021, arXiv:2012.12877, Table 9: 0.25).
        scale: range of the rectangle's area, as a share of the image's.
        ratio: range of the rectangle's height / width, drawn log-uniformly.
        mean: mean of the noise, in [0, 1].
        std: standard deviation of the noise, >= 0. With 0 the rectangle has one colour; with ``mean`` 0 too it is
            black.

    Raises:
        ValueError: if an argument is out of its range.
    """

    _TRIES = 10

    def __init__(
        self,
        p: float = 0.25,
        scale: tuple[float, float] = (0.02, 1 / 3),  # DeiT, published code, as is the next
        ratio: tuple[float, float] = (0.3, 1 / 0.3),
        mean: float = 0.5,  # our choice, as is the next: near those of photographs
        std: float = 0.25,
    ) -> None:
        super().__init__()
        check_probability("p", p)
        check_range("scale", scale)
        check_range("ratio", ratio)
        if scale[1] > 1:
            raise ValueError(f"scale is {scale}: a rectangle is at most the whole image, 1")
        if not 0 <= mean <= 1:
            raise ValueError(f"mean is {mean}: it must be between 0 (black) and 1 (white)")
        if not 0 <= std < float("inf"):
            raise ValueError(f"std is {std}: it must be at least 0 (one colour)")
        self.p = p
        self.scale = scale
        self.ratio = ratio
        self.mean = mean
        self.std = std

    def boxes(self, key: Key, height: int, width: int) -> Tensor:
        """Draws rectangles, float [B, 4]: top, left, height and width in whole pixels; all 0 where none is erased."""
        u = to_float(uniform(key, 2 * self._TRIES + 3))
        area = between(u[:, : self._TRIES], self.scale[0], self.scale[1]).mul_(height * width)
        root = between(u[:, self._TRIES : -3], math.log(self.ratio[0]) / 2, math.log(self.ratio[1]) / 2).exp_()
        side = area.sqrt_()
        h, w = (side * root).round_(), (side / root).round_()
        valid = (w < width) & (h < height)  # [B, tries]
        first = valid.int().argmax(1, keepdim=True)
        h, w = h.gather(1, first)[:, 0], w.gather(1, first)[:, 0]
        top, left = (u[:, -3] * (height - h + 1)).floor_(), (u[:, -2] * (width - w + 1)).floor_()
        erased = valid.any(1) & (u[:, -1] < self.p)
        return torch.stack([top, left, h, w], dim=1) * erased[:, None]

    def view(self, image: Tensor, key: Key) -> Tensor:
        """Erases a part of some of float images [B, C, H, W]."""
        channels, height, width = image.shape[1:]
        box = self.boxes(key, height, width)
        chosen = box[:, 2].nonzero()[:, 0]  # only those need noise, although counting them waits for the device
        if len(chosen) == 0:
            return image
        top, left, h, w = box[chosen, :, None].unbind(1)  # [n, 1] each
        row, column = torch.arange(height, device=image.device), torch.arange(width, device=image.device)
        inside = ((row >= top) & (row < top + h))[:, :, None] & ((column >= left) & (column < left + w))[:, None]
        noise = normal(key._replace(index=key.index[chosen]).fold_in(0), channels * height * width)
        noise = noise.mul_(self.std).add_(self.mean).clamp_(0, 1).view(-1, channels, height, width)
        return image.index_copy(0, chosen, torch.where(inside[:, None], noise, image[chosen]))
