import torch
import torch.nn.functional as F
from torch import Tensor

from recipes.augment.base import Views, between, check_probability, check_range, to_float
from recipes.augment.keys import Key, uniform


class GaussianBlur(Views):
    """Blurs with a Gaussian whose width is drawn per image; equal to torchvision's ``GaussianBlur``.

    Args:
        sigma: range of the Gaussian's standard deviation in pixels (SimCLR, Appendix A: 0.1 to 2).
        p: the share of images that are blurred.
        kernel_size: odd number of pixels the Gaussian reaches over; None is a tenth of the image's shorter side
            (SimCLR, Appendix A), made odd, at least 3: 23 at 224 pixels, 3 at 32.

    Raises:
        ValueError: if an argument is out of its range, or the kernel reaches further than an image is wide.
    """

    def __init__(self, sigma: tuple[float, float] = (0.1, 2.0), p: float = 0.5, kernel_size: int | None = None) -> None:
        super().__init__()
        check_range("sigma", sigma)
        check_probability("p", p)
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise ValueError(
                f"kernel_size is {kernel_size}: it must be odd and positive, or none for a tenth of a side"
            )
        self.sigma = sigma
        self.p = p
        self.kernel_size = kernel_size

    def sigmas(self, key: Key) -> Tensor:
        """Draws standard deviations in pixels, float [B]; 0 where an image is not blurred."""
        u = to_float(uniform(key, 2))
        return torch.where(u[:, 0] < self.p, between(u[:, 1], self.sigma[0], self.sigma[1]), 0.0)

    def view(self, image: Tensor, key: Key) -> Tensor:
        """Blurs some of float images [B, C, H, W]."""
        if self.p == 0:
            return image
        side = min(image.shape[2:])
        radius = (self.kernel_size or 2 * max(1, side // 20) + 1) // 2
        if radius >= side:
            raise ValueError(f"kernel_size is {2 * radius + 1}: images of {side} pixels allow at most {2 * side - 1}")
        sigma = self.sigmas(key)
        if image.is_cuda:  # blurring all is cheap there; to count those that are chosen, the host would have to wait
            blurred = _blur(image, sigma.clamp(min=self.sigma[0]), radius)
            return torch.where(sigma[:, None, None, None] > 0, blurred, image)
        chosen = sigma.nonzero()[:, 0]
        if len(chosen) == 0:
            return image
        return image.index_copy(0, chosen, _blur(image[chosen], sigma[chosen], radius))


def _blur(image: Tensor, sigma: Tensor, radius: int) -> Tensor:
    kernel = _gaussian(sigma, radius)
    for dim, pad in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):  # down the columns, along the rows
        image = _convolve(F.pad(image, pad, mode="reflect"), kernel, dim)
    return image.clamp_(0, 1)


def _gaussian(sigma: Tensor, radius: int) -> Tensor:
    distance = torch.arange(-radius, radius + 1, device=sigma.device, dtype=sigma.dtype)
    weight = torch.exp(-0.5 * (distance / sigma[:, None]) ** 2)
    total = weight[:, 0]
    for i in range(1, 2 * radius + 1):
        total = total + weight[:, i]
    return weight / total[:, None]  # [B, 2 radius + 1]


def _convolve(image: Tensor, kernel: Tensor, dim: int) -> Tensor:
    taps = kernel.shape[1]
    batch, channels = image.shape[:2]
    if image.is_cuda and batch * channels > 1:  # a single channel would be convolved with rounded factors (TF32)
        each = kernel.repeat_interleave(channels, 0).view(-1, 1, *((taps, 1) if dim == 2 else (1, taps)))
        result = F.conv2d(image.reshape(1, -1, *image.shape[2:]), each, groups=batch * channels)
        return result.view(batch, channels, *result.shape[2:])
    # A sum of shifted images: on CPU 5 times as fast as grouped convolution at 32 pixels, and as fast at 224.
    length = image.shape[dim] - taps + 1
    weight = kernel[:, :, None, None, None]
    result = weight[:, 0] * image.narrow(dim, 0, length)
    for i in range(1, taps):
        result.addcmul_(weight[:, i], image.narrow(dim, i, length))
    return result


class Solarize(Views):
    """Inverts the values that are not below a threshold; equal to torchvision's ``RandomSolarize``.

    Args:
        threshold: value from which pixels are inverted, in [0, 1].
        p: the share of images that are solarised.

    Raises:
        ValueError: if an argument is not between 0 and 1.
    """

    def __init__(self, threshold: float = 0.5, p: float = 0.2) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}: it must be between 0 and 1")
        check_probability("p", p)
        self.threshold = threshold
        self.p = p

    def view(self, image: Tensor, key: Key) -> Tensor:
        """Solarises some of float images [B, C, H, W]."""
        if self.p == 0:
            return image
        fired = uniform(key, 1)[:, :, None, None] < self.p
        return torch.where(fired & (image >= self.threshold), 1 - image, image)
