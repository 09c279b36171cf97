"""Operations that move pixels. Each is one matrix per image, so that any number of them costs one interpolation."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.augment.base import Views, between, check_probability, check_range, to_float
from recipes.augment.keys import Key, uniform

Padding = Literal["border", "zeros"]


class Geometry(Views):
    """An operation that moves pixels: it maps each pixel of the output to a position in the input.

    Coordinates run from -1 to 1 over the width (x) and the height (y), edge to edge (``align_corners=False``).
    Several in a row look up the image once, bilinearly and without antialiasing.
    """

    padding: Padding = "border"
    """What lies outside the image: its border pixels go on, or black."""

    @abstractmethod
    def matrix(self, key: Key, height: int, width: int) -> Tensor:
        """Draws the float [B, 2, 3] matrices that map coordinates (x, y, 1) of the output to (x, y) of an input."""

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of some height and width."""
        return height, width

    def view(self, image: Tensor, key: Key) -> Tensor:
        """Moves the pixels of float images [B, C, H, W]."""
        return move([self], image, [key])


def move(operations: Sequence[Geometry], image: Tensor, keys: Sequence[Key]) -> Tensor:
    """Applies operations, one key each, to float images [B, C, H, W] with one interpolation."""
    height, width = image.shape[2:]
    total: Tensor | None = None
    for operation, key in zip(operations, keys, strict=True):
        matrix = operation.matrix(key, height, width)
        total = matrix if total is None else _compose(total, matrix)
        height, width = operation.output_size(height, width)
    if total is None:
        return image
    # With "zeros" a pixel nearer than half a pixel to the edge fades to black, so "border" unless somebody asks.
    padding = "zeros" if any(operation.padding == "zeros" for operation in operations) else "border"
    moved = F.grid_sample(image, sampling_grid(total, height, width), "bilinear", padding, align_corners=False)
    return moved.clamp_(0, 1)  # the four weights of a pixel can sum to a little more than 1


def _compose(first: Tensor, second: Tensor) -> Tensor:
    """Looks up the second operation's output in its input, the output of the first: first @ second, both [B, 2, 3]."""
    # Sums are written out, here and below: a batched matrix product may round differently in another batch size.
    product = first[:, :, 0:1] * second[:, 0:1] + first[:, :, 1:2] * second[:, 1:2]
    product[:, :, 2] += first[:, :, 2]
    return product


def sampling_grid(matrix: Tensor, height: int, width: int) -> Tensor:
    """Where to look, [B, H, W, 2]: F.affine_grid, at a tenth of the time."""
    x, y = (
        torch.arange(1 - n, n, 2, device=matrix.device, dtype=matrix.dtype).div_(n) for n in (width, height)
    )  # pixel centres
    column = matrix[:, :, 0:1] * x + matrix[:, :, 2:]  # [B, 2, W]
    row = matrix[:, :, 1:2] * y  # [B, 2, H]
    grid = matrix.new_empty(len(matrix), height, width, 2)
    for i in (0, 1):
        torch.add(column[:, i, None, :], row[:, i, :, None], out=grid[..., i])
    return grid


def affine_matrix(xx: Tensor, xy: Tensor, x: Tensor, yx: Tensor, yy: Tensor, y: Tensor) -> Tensor:
    """The matrices [B, 2, 3] of six coefficients, each [B], row by row."""
    return torch.stack([xx, xy, x, yx, yy, y], dim=1).view(-1, 2, 3)


class RandomResizedCrop(Geometry):
    """Crops a random box and resizes it (Szegedy et al., 2015, arXiv:1409.4842, Section 6).

    Boxes are drawn as torchvision's ``RandomResizedCrop`` draws them: whole pixels, at most ten tries, then the largest
    central box. Resizing differs in two ways: it never antialiases (torchvision's does where it makes an image smaller;
    a crop that is resized to the image's own size is never smaller), and at the edge of the box, half an output pixel
    wide, it blends in the pixel beyond the box where there is one.

    Args:
        size: height and width of the output in pixels; None is the size of the input.
        scale: range of the box's area, as a share of the image's.
        ratio: range of the box's width / height, drawn log-uniformly.

    Raises:
        ValueError: if the size is not positive or a range is not ascending and positive, or the scale exceeds 1.
    """

    _TRIES = 10

    def __init__(
        self,
        size: int | tuple[int, int] | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ) -> None:
        super().__init__()
        self.size = (size, size) if isinstance(size, int) else size
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise ValueError(f"size is {size}: it must be positive, (height, width), or none for the image's own size")
        check_range("scale", scale)
        check_range("ratio", ratio)
        if scale[1] > 1:
            raise ValueError(f"scale is {scale}: a crop is at most the whole image, 1")
        self.scale = scale
        self.ratio = ratio

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of the crops."""
        return (height, width) if self.size is None else (self.size[0], self.size[1])

    def boxes(self, key: Key, height: int, width: int) -> Tensor:
        """Draws boxes, float [B, 4]: top, left, height and width in whole pixels."""
        u = to_float(uniform(key, 2 * self._TRIES + 2))
        area = between(u[:, : self._TRIES], self.scale[0], self.scale[1]).mul_(height * width)
        root = between(u[:, self._TRIES : -2], math.log(self.ratio[0]) / 2, math.log(self.ratio[1]) / 2).exp_()
        side = area.sqrt_()
        w, h = (side * root).round_(), (side / root).round_()
        valid = (w > 0) & (w <= width) & (h > 0) & (h <= height)  # [B, tries]
        first = valid.int().argmax(1, keepdim=True)
        found = valid.gather(1, first)[:, 0]
        largest_w = min(width, round(height * self.ratio[1]))
        largest_h = min(height, round(width / self.ratio[0]))
        w = torch.where(found, w.gather(1, first)[:, 0], largest_w)
        h = torch.where(found, h.gather(1, first)[:, 0], largest_h)
        top = torch.where(found, (u[:, -2] * (height - h + 1)).floor_(), (height - largest_h) // 2)
        left = torch.where(found, (u[:, -1] * (width - w + 1)).floor_(), (width - largest_w) // 2)
        return torch.stack([top, left, h, w], dim=1)

    def matrix(self, key: Key, height: int, width: int) -> Tensor:
        """Draws the matrices that look at a box."""
        top, left, h, w = self.boxes(key, height, width).unbind(1)
        zero = torch.zeros_like(h)
        return affine_matrix(w / width, zero, (2 * left + w) / width - 1, zero, h / height, (2 * top + h) / height - 1)


class HorizontalFlip(Geometry):
    """Swaps left and right.

    Args:
        p: the share of images that are flipped.

    Raises:
        ValueError: if p is not a probability.
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        check_probability("p", p)
        self.p = p

    def matrix(self, key: Key, height: int, width: int) -> Tensor:
        """Draws the matrices that negate x or do not."""
        u = to_float(uniform(key, 1))[:, 0]
        sign = torch.where(u < self.p, -1.0, torch.ones_like(u))
        zero = torch.zeros_like(u)
        return affine_matrix(sign, zero, zero, zero, torch.ones_like(u), zero)


class RandomAffine(Geometry):
    """Rotates, shears, scales and shifts about the centre.

    As torchvision's ``RandomAffine`` with bilinear interpolation, except that shifts are not rounded to whole pixels.
    In a row with other geometry, black is what lies outside the image that the row starts from.

    Args:
        degrees: the largest rotation, clockwise or counter-clockwise, in degrees.
        translate: the largest shift, as a share of the width and of the height.
        scale: range of the magnification.
        shear: the largest horizontal shear, in degrees, below 90.
        p: the share of images that are moved.
        padding: values outside the image: "zeros" (black) or "border" (the border pixels repeated).

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        degrees: float = 0.0,
        translate: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        p: float = 1.0,
        padding: Padding = "zeros",
    ) -> None:
        super().__init__()
        if not 0 <= degrees <= 180:
            raise ValueError(f"degrees is {degrees}: the largest rotation must be between 0 and 180")
        if not 0 <= translate <= 1:
            raise ValueError(f"translate is {translate}: the largest shift must be between 0 and 1 (the whole image)")
        if not 0 <= shear < 90:
            raise ValueError(f"shear is {shear}: the largest shear must be at least 0 and below 90 degrees")
        if padding not in ("zeros", "border"):
            raise ValueError(f"padding is {padding!r}: it must be 'zeros' or 'border'")
        check_range("scale", scale)
        check_probability("p", p)
        self.degrees = degrees
        self.translate = translate
        self.scale = scale
        self.shear = shear
        self.p = p
        self.padding = padding

    def poses(self, key: Key) -> Tensor:
        """Draws, float [B, 5]: rotation and shear in degrees, shifts as shares of the width and height, scale."""
        u = to_float(uniform(key, 6))
        drawn = torch.stack(
            [
                between(u[:, 1], -self.degrees, self.degrees),
                between(u[:, 2], -self.shear, self.shear),
                between(u[:, 3], -self.translate, self.translate),
                between(u[:, 4], -self.translate, self.translate),
                between(u[:, 5], self.scale[0], self.scale[1]) - 1,
            ],
            dim=1,
        )
        drawn = drawn * (u[:, :1] < self.p)
        drawn[:, 4] += 1
        return drawn

    def matrix(self, key: Key, height: int, width: int) -> Tensor:
        """Draws the matrices that undo a rotation, shear, magnification and shift."""
        rotation, shear, x, y, scale = self.poses(key).unbind(1)
        cos, sin = torch.cos(torch.deg2rad(rotation)), torch.sin(torch.deg2rad(rotation))
        tan = torch.tan(torch.deg2rad(shear))
        # output = shift + rotation @ [[1, -tan], [0, 1]] @ (scale * input), in pixels; solved for the input
        xx, xy = (cos - tan * sin) / scale, (sin + tan * cos) / scale * (height / width)
        yx, yy = -sin / scale * (width / height), cos / scale
        return affine_matrix(xx, xy, -2 * (xx * x + xy * y), yx, yy, -2 * (yx * x + yy * y))
