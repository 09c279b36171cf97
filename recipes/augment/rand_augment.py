from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.augment.base import Views, check_probability, to_float
from recipes.augment.colour import BLUE, GREEN, RED
from recipes.augment.geometry import affine_matrix, sampling_grid
from recipes.augment.keys import Key, normal, uniform


class RandAugment(Views):
    """Applies operations that are drawn for each image from a list of fifteen (Cubuk et al., 2020, arXiv:1909.13719).

    As DeiT has it (Touvron et al., 2021, arXiv:2012.12877, Table 9, and its code: ``rand-m9-mstd0.5-inc1`` of timm),
    which differs from the paper: every operation is applied with probability 1/2; its magnitude is drawn, from a normal
    distribution; and what has a strength gets stronger with it. The operations are PIL's, except that

    - values are rounded to 256 levels only where an operation counts levels (``AutoContrast``, ``Equalize``,
      ``Posterize``, ``Solarize``, ``SolarizeAdd``);
    - pixels are moved by bilinear interpolation, where DeiT's code has bicubic, and what comes from outside of the
      image is grey (128 of 255), where it has the mean colour of ImageNet;
    - ``Posterize`` keeps a bit at magnitude 10, where DeiT's code makes the image black.

    Grey images (C = 1) have no ``Color`` to change.

    Args:
        operations: number of operations for each image, >= 1. They are drawn with replacement and applied in turn.
        magnitude: mean of the magnitudes, between 0 and 10.
        magnitude_std: standard deviation of the magnitudes, at least 0; they are clipped to [0, 10].
        p: the share of drawn operations that are applied.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        operations: int = 2,  # DeiT, published code, as is p
        magnitude: float = 9.0,  # DeiT, Table 9
        magnitude_std: float = 0.5,  # DeiT, Table 9
        p: float = 0.5,
    ) -> None:
        super().__init__()
        if operations < 1:
            raise ValueError(f"operations is {operations}: it must be at least 1")
        if not 0 <= magnitude <= 10:
            raise ValueError(f"magnitude is {magnitude}: it must be between 0 and 10")
        if not 0 <= magnitude_std < float("inf"):
            raise ValueError(f"magnitude_std is {magnitude_std}: it must be at least 0 (all the same)")
        check_probability("p", p)
        self.operations = operations
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.p = p

    def choices(self, key: Key) -> tuple[Tensor, Tensor]:
        """Draws one operation for each image.

        Args:
            key: key of the random numbers.

        Returns:
            The operation's place in the list, int64 [B], -1 for none; and its level, float [B]: a tenth of the
            magnitude, in a random direction, so in [-1, 1].
        """
        u = to_float(uniform(key, 3))
        operation = torch.where(u[:, 0] < self.p, (u[:, 1] * len(OPERATIONS)).long(), -1)
        magnitude = (self.magnitude + self.magnitude_std * normal(key.fold_in(0), 1)[:, 0]).clamp(0, 10)
        return operation, torch.where(u[:, 2] < 0.5, -magnitude, magnitude) / 10

    def view(self, image: Tensor, key: Key) -> Tensor:
        """Applies operations to float images [B, C, H, W]."""
        for number in range(self.operations):
            operation, level = self.choices(key.fold_in(number))
            image = _apply(image, operation, level)
        return image


def _apply(image: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    # Sorted, so that each operation works on its own images alone, and the device is waited for only once.
    order = operation.argsort()
    counts = torch.bincount(operation + 1, minlength=len(OPERATIONS) + 1).tolist()
    result = image.clone()
    for rows, function in zip(order.split(counts)[1:], OPERATIONS.values(), strict=True):
        if len(rows):
            result[rows] = function(image[rows], level[rows, None, None, None]).clamp_(0, 1)
    return result


# Each maps float images [n, C, H, W] and levels [n, 1, 1, 1] in [-1, 1] to new images, which are clipped afterwards.
# An operation that has no opposite takes the level's size.


def _auto_contrast(image: Tensor, level: Tensor) -> Tensor:
    values = _levels(image)
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)  # of each channel
    return torch.where(high > low, (values - low) / (high - low), image)


def _equalize(image: Tensor, level: Tensor) -> Tensor:
    values = _levels(image).long().flatten(2)  # [n, C, H W]
    count = values.new_zeros(*values.shape[:2], 256).scatter_add_(2, values, torch.ones_like(values))
    brightest = count.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    table = ((step // 2 + count.cumsum(2) - count) // step.clamp(min=1)).clamp_(max=255)
    equal = torch.where(step > 0, table.gather(2, values), values)
    return equal.view_as(image).to(image.dtype) / 255


def _invert(image: Tensor, level: Tensor) -> Tensor:
    return 1 - image


def _posterize(image: Tensor, level: Tensor) -> Tensor:
    width = 1 << (4 + (4 * level.abs()).long().clamp(max=3))  # keeps 4 to 1 bits of 8
    return (_levels(image) / width).floor() * width / 255


def _solarize(image: Tensor, level: Tensor) -> Tensor:
    threshold = 256 - (256 * level.abs()).floor()
    return torch.where(_levels(image) < threshold, image, 1 - image)


def _solarize_add(image: Tensor, level: Tensor) -> Tensor:
    added = (110 * level.abs()).floor()
    return torch.where(_levels(image) < 128, image + added / 255, image)


def _color(image: Tensor, level: Tensor) -> Tensor:
    return image if image.shape[1] == 1 else _enhance(image, _grey(image), level)


def _contrast(image: Tensor, level: Tensor) -> Tensor:
    mean = image.mean(2, keepdim=True).mean(3, keepdim=True)  # in two steps, for the same bits with many threads
    return _enhance(image, mean if image.shape[1] == 1 else _grey(mean), level)


def _brightness(image: Tensor, level: Tensor) -> Tensor:
    return _enhance(image, torch.zeros_like(image), level)


def _sharpness(image: Tensor, level: Tensor) -> Tensor:
    rows = image[:, :, :-2] + image[:, :, 1:-1] + image[:, :, 2:]
    inner = image[:, :, 1:-1, 1:-1]
    smooth = image.clone()  # PIL leaves the border alone
    smooth[:, :, 1:-1, 1:-1] = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inner) / 13
    return _enhance(image, smooth, level)


def _rotate(image: Tensor, level: Tensor) -> Tensor:
    angle = torch.deg2rad(30 * level)
    cos, sin = torch.cos(angle), torch.sin(angle)
    return _move(image, xx=cos, xy=-sin, yx=sin, yy=cos)


def _shear_x(image: Tensor, level: Tensor) -> Tensor:
    shear = 0.3 * level
    return _move(image, xy=shear, x=shear * image.shape[2] / 2)  # the top row stays


def _shear_y(image: Tensor, level: Tensor) -> Tensor:
    shear = 0.3 * level
    return _move(image, yx=shear, y=shear * image.shape[3] / 2)  # the left column stays


def _translate_x(image: Tensor, level: Tensor) -> Tensor:
    return _move(image, x=0.45 * level * image.shape[3])


def _translate_y(image: Tensor, level: Tensor) -> Tensor:
    return _move(image, y=0.45 * level * image.shape[2])


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
    "Rotate": _rotate,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "SolarizeAdd": _solarize_add,
    "Color": _color,
    "Contrast": _contrast,
    "Brightness": _brightness,
    "Sharpness": _sharpness,
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
}


def _levels(image: Tensor) -> Tensor:
    """The nearest of 256 levels, 0 to 255."""
    return (image * 255).round_()


def _grey(image: Tensor) -> Tensor:
    return RED * image[:, 0:1] + GREEN * image[:, 1:2] + BLUE * image[:, 2:3]


def _enhance(image: Tensor, without: Tensor, level: Tensor) -> Tensor:
    """Less or more of what an image has over one without: PIL's ImageEnhance, with factors from 0.1 to 1.9."""
    return without + (1 + 0.9 * level) * (image - without)


def _move(
    image: Tensor,
    xx: Tensor | float = 1.0,
    xy: Tensor | float = 0.0,
    x: Tensor | float = 0.0,
    yx: Tensor | float = 0.0,
    yy: Tensor | float = 1.0,
    y: Tensor | float = 0.0,
) -> Tensor:
    """Looks up each pixel of the output at (xx, xy, yx, yy) @ its place + (x, y), in pixels from the centre."""
    height, width = image.shape[2:]
    zero = image.new_zeros(len(image), 1, 1, 1)
    parts = (xx, xy * height / width, 2 * x / width, yx * width / height, yy, 2 * y / height)
    grid = sampling_grid(affine_matrix(*((zero + part).flatten() for part in parts)), height, width)
    moved = F.grid_sample(image, grid, "bilinear", "border", align_corners=False)
    inside = (grid.abs() <= 1).all(3)[:, None]  # [n, 1, H, W]
    return torch.where(inside, moved, 128 / 255)
