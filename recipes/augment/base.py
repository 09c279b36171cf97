from abc import ABC, abstractmethod
from functools import lru_cache

import torch
from torch import Tensor, nn

from recipes.augment.keys import Key


class Views(nn.Module, ABC):
    """Draws one random view of every image of a batch, on the device of the batch; keeps no state.

    A pipeline and each of its operations are views. The same key gives the same pixels in every batch.
    Subclasses write ``view``.
    """

    def forward(self, image: Tensor, key: Key) -> Tensor:
        """Draws the view of a batch that belongs to a key.

        Args:
            image: uint8 (0 to 255) or float in [0, 1], [B, C, H, W] with C 1 (grey) or 3 (RGB).
            key: for what the random numbers are drawn; one index per image.

        Returns:
            Float images in [0, 1]: float64 where that is torch's default type, otherwise float32.

        Raises:
            ValueError: if the image or the number of indices has another form.
        """
        check_image(image)
        if key.index.shape != image.shape[:1]:
            raise ValueError(f"the key has indices of shape {tuple(key.index.shape)}: {len(image)} images need as many")
        with torch.autocast(image.device.type, enabled=False):
            return self.view(to_float(image), key)

    @abstractmethod
    def view(self, image: Tensor, key: Key) -> Tensor:
        """Maps float images in [0, 1], [B, C, H, W], to float images in [0, 1]; does not write to ``image``."""


def to_float(image: Tensor) -> Tensor:
    """Turns uint8 (0 to 255) or float images into float64 where that is torch's default type, otherwise float32."""
    dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
    if image.dtype == torch.uint8:
        return image.to(dtype).div_(255)  # converting first is many times faster than image / 255
    return image.to(dtype)


def check_image(image: Tensor) -> None:
    """Raises ValueError unless the image is uint8 or float, [B, C, H, W], with C 1 or 3."""
    if image.ndim != 4 or image.shape[1] not in (1, 3):
        raise ValueError(f"images have shape {tuple(image.shape)}: it must be [B, C, H, W] with C 1 (grey) or 3 (RGB)")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"images are {image.dtype}: they must be uint8 (0 to 255) or float in [0, 1]")


def check_probability(name: str, p: float) -> None:
    """Raises ValueError unless p is in [0, 1]."""
    if not 0 <= p <= 1:
        raise ValueError(f"{name} is {p}: a probability must be between 0 and 1")


def check_range(name: str, bounds: tuple[float, float], above: float = 0.0) -> None:
    """Raises ValueError unless the bounds are two ascending numbers greater than ``above``."""
    if len(bounds) != 2 or not above < bounds[0] <= bounds[1] < float("inf"):
        raise ValueError(f"{name} is {bounds}: it must be two ascending numbers greater than {above:g}")


@lru_cache(maxsize=256)
def constants(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Puts numbers on a device, once: the host waits whenever it copies numbers to a GPU. Not to be written to."""
    with torch.inference_mode(False):  # or nobody could use it for a gradient later
        return torch.tensor(numbers, dtype=dtype, device=device)


def between(u: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Maps numbers in [0, 1) to [low, high)."""
    return low + u * (high - low)
