"""Operations on colours. Each is one affine map of colours per image, so that any number of them costs one pass."""

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from recipes.augment.base import Views, between, check_probability, constants, to_float
from recipes.augment.keys import Key, uniform

RED, GREEN, BLUE = 0.2989, 0.587, 0.114  # share of each in grey: ITU-R BT.601, to torchvision's digits


class Colour(Views):
    """An operation that maps the colours of an image: colour -> matrix @ colour + offset.

    Several in a row touch the image once. They clip to [0, 1] once, at the end, where torchvision clips after each.
    """

    needs_mean = False
    """Whether ``map`` reads the mean colour."""

    @abstractmethod
    def map(self, key: Key, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Draws one map per image.

        Args:
            key: for what the random numbers are drawn.
            mean: mean colour of the images, float [B, C]; zeros unless ``needs_mean``.

        Returns:
            Matrix [B, C, C] and offset [B, C].
        """

    def view(self, image: Tensor, key: Key) -> Tensor:
        """Maps the colours of float images [B, C, H, W]."""
        return recolour([self], image, [key])


def recolour(operations: Sequence[Colour], image: Tensor, keys: Sequence[Key]) -> Tensor:
    """Applies operations, one key each, to float images [B, C, H, W] in one pass and clips to [0, 1]."""
    # The mean in two steps: one step over a single grey image could be split among threads, and round differently.
    needs_mean = any(operation.needs_mean for operation in operations)
    mean = image.mean(2).mean(2) if needs_mean else image.new_zeros(image.shape[:2])
    total: tuple[Tensor, Tensor] | None = None
    for operation, key in zip(operations, keys, strict=True):
        matrix, offset = operation.map(key, mean)
        mean = _apply(matrix, mean) + offset
        total = (matrix, offset) if total is None else (_product(matrix, total[0]), _apply(matrix, total[1]) + offset)
    if total is None:
        return image
    matrix, offset = (part[..., None, None] for part in total)
    result = matrix[:, :, 0] * image[:, 0:1]  # sums are written out so that they round alike in every batch size
    for channel in range(1, image.shape[1]):
        result.addcmul_(matrix[:, :, channel], image[:, channel : channel + 1])
    return result.add_(offset).clamp_(0, 1)


def _apply(matrix: Tensor, colour: Tensor) -> Tensor:
    result = matrix[:, :, 0] * colour[:, 0:1]
    for channel in range(1, colour.shape[1]):
        result = result + matrix[:, :, channel] * colour[:, channel : channel + 1]
    return result  # [B, C]


def _product(left: Tensor, right: Tensor) -> Tensor:
    result = left[:, :, 0:1] * right[:, 0:1]
    for channel in range(1, left.shape[2]):
        result = result + left[:, :, channel : channel + 1] * right[:, channel : channel + 1]
    return result  # [B, C, C]


class ColorJitter(Colour):
    """Changes brightness, contrast, saturation and hue, in a random order.

    Factors are drawn as torchvision's ``ColorJitter`` draws them: from [max(0, 1 - x), 1 + x], and hue from
    [-hue, hue]. Where nothing clips, brightness, contrast and saturation are torchvision's, unless ``add_brightness``
    is set. Two things differ:

    - Colours are clipped to [0, 1] once, after all, not after each: a bright image that is darkened later keeps
      its highlights.
    - Hue turns colours about the grey axis of RGB, which is linear. torchvision adds to the hue of HSV, which is not.
      The two are equal for turns by a third of the circle, and for greys; between, a turn keeps the mean of the
      three channels, and HSV the largest.

    On photographs, both together are 0.12 to 0.2 of the jitter's own change (root mean squares; settings of SimCLR,
    MoCo and BYOL), and more for single images.

    Brightness, contrast and saturation commute, also if brightness is added. All orders therefore come down to whether
    hue comes before contrast, and before saturation. Grey images (C = 1) have neither saturation nor hue.

    Args:
        brightness: largest change of the factor on all values, at least 0; with ``add_brightness``, the largest number
            that is added to all values or taken from them.
        contrast: largest change of the factor on the distance from the image's mean grey, at least 0.
        saturation: largest change of the factor on the distance from the pixel's grey, at least 0.
        hue: largest turn, as a share of the colour circle, between 0 and 0.5.
        p: the share of images that are changed.
        add_brightness: whether brightness is added to all values, which are in [0, 1], and does not multiply them.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        p: float = 1.0,
        add_brightness: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}: it must be at least 0")
        if not 0 <= hue <= 0.5:
            raise ValueError(f"hue is {hue}: it must be between 0 and 0.5 (half the colour circle)")
        check_probability("p", p)
        self.brightness = brightness
        self.contrast = contrast
        self.saturation = saturation
        self.hue = hue
        self.p = p
        self.add_brightness = add_brightness
        self.needs_mean = contrast > 0

    def factors(self, key: Key) -> Tensor:
        """Draws, float [B, 4]: factors of brightness, contrast and saturation, and the turn of hue in circles.

        The first is a summand if ``add_brightness``.
        """
        u = to_float(uniform(key, 5))
        ranges = [
            (max(0.0, 1 - change), 1 + change, 1.0) for change in (self.brightness, self.contrast, self.saturation)
        ]
        if self.add_brightness:
            ranges[0] = (-self.brightness, self.brightness, 0.0)
        rows = zip(*ranges, (-self.hue, self.hue, 0.0), strict=True)
        low, high, unchanged = (constants(row, u.dtype, u.device) for row in rows)
        return torch.where(u[:, :1] < self.p, between(u[:, 1:], low, high), unchanged)

    def map(self, key: Key, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Draws one jitter per image."""
        brightness, contrast, saturation, hue = self.factors(key).unbind(1)
        added = torch.zeros_like(brightness)
        if self.add_brightness:
            added, brightness = brightness, torch.ones_like(brightness)
        gain, fade = brightness * contrast, (brightness * (1 - contrast))[:, None]
        if mean.shape[1] == 1:
            return gain[:, None, None], fade * mean + added[:, None]
        place = uniform(key.fold_in(0), 3)  # the order: who has the smaller number comes first
        hue_before_contrast, hue_before_saturation = (place[:, 2:] < place[:, :2]).unbind(1)

        turn = _turn(hue)
        # Saturation s moves each colour towards its grey, s I + (1 - s) 1 greyᵀ; a turn T keeps greys, T 1 = 1. So
        # saturation then hue is s T + (1 - s) 1 greyᵀ, and hue then saturation s T + (1 - s) 1 (greyᵀ T).
        grey = torch.where(
            hue_before_saturation[:, None], _grey_row(turn), constants((RED, GREEN, BLUE), turn.dtype, turn.device)
        )  # [B, 3]
        away = saturation[:, None, None]
        matrix = away * turn + ((1 - saturation)[:, None] * grey)[:, None]
        # Contrast moves each colour towards the mean grey of the image as it then is; saturation leaves that alone.
        seen = _grey(torch.where(hue_before_contrast[:, None], _apply(matrix, mean), mean))  # [B, 1]
        return gain[:, None, None] * matrix, (fade * seen + added[:, None]).expand(-1, 3)


def _turn(circles: Tensor) -> Tensor:
    """Rotations about the grey axis, red towards green, [B, 3, 3] (Rodrigues' formula)."""
    angle = circles * (2 * math.pi)
    cos, sin = torch.cos(angle), torch.sin(angle) / math.sqrt(3)
    rest = (1 - cos) / 3
    same, minus, plus = cos + rest, rest - sin, rest + sin
    return torch.stack([same, minus, plus, plus, same, minus, minus, plus, same], dim=1).view(-1, 3, 3)


def _grey_row(matrix: Tensor) -> Tensor:
    return RED * matrix[:, 0] + GREEN * matrix[:, 1] + BLUE * matrix[:, 2]


def _grey(colour: Tensor) -> Tensor:
    return RED * colour[:, 0:1] + GREEN * colour[:, 1:2] + BLUE * colour[:, 2:3]


class Grayscale(Colour):
    """Removes the colour, keeping three equal channels; grey images (C = 1) stay as they are.

    Equal to torchvision's ``RandomGrayscale``.

    Args:
        p: the share of images that lose their colour.

    Raises:
        ValueError: if p is not a probability.
    """

    def __init__(self, p: float = 0.2) -> None:
        super().__init__()
        check_probability("p", p)
        self.p = p

    def map(self, key: Key, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Draws for each image the map to grey or the identity."""
        identity = torch.eye(mean.shape[1], device=mean.device, dtype=mean.dtype)
        fired = uniform(key, 1)[:, :, None] < self.p
        grey = _grey_row(identity[:, :, None])[:, 0] if mean.shape[1] == 3 else identity
        return torch.where(fired, grey, identity), torch.zeros_like(mean)


class Intensity(Colour):
    """Multiplies all values and adds to them: lighter or stronger strokes, a lighter or darker ground.

    Args:
        gain: largest change of the factor on all values, at least 0: factors are in [max(0, 1 - gain), 1 + gain].
        offset: largest number that is added or taken away, at least 0, where values are in [0, 1].
        p: the share of images that are changed.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(self, gain: float = 0.0, offset: float = 0.0, p: float = 1.0) -> None:
        super().__init__()
        for name, value in (("gain", gain), ("offset", offset)):
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name} is {value}: it must be at least 0")
        check_probability("p", p)
        self.gain = gain
        self.offset = offset
        self.p = p

    def map(self, key: Key, mean: Tensor) -> tuple[Tensor, Tensor]:
        """Draws one factor and one summand per image."""
        u = to_float(uniform(key, 3))
        fired = u[:, 0] < self.p
        gain = torch.where(fired, between(u[:, 1], max(0.0, 1 - self.gain), 1 + self.gain), torch.ones_like(u[:, 1]))
        offset = torch.where(fired, between(u[:, 2], -self.offset, self.offset), 0.0)
        identity = torch.eye(mean.shape[1], device=mean.device, dtype=mean.dtype)
        return gain[:, None, None] * identity, offset[:, None].expand_as(mean)
