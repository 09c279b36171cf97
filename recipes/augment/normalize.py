import torch
from torch import Tensor, nn

from recipes.augment.base import check_image, to_float


class Normalize(nn.Module):
    """Normalises images for an encoder: (image - mean) / std per channel, image in [0, 1].

    Mean and std are in the state dict, so that a trained encoder keeps those it was trained with.
    Until ``set`` is called they are 0 and 1. Images with one channel use the first of each.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.ones(3))

    def set(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Sets mean and std.

        Args:
            mean: one or three numbers, where values are in [0, 1]; one is used for all channels.
            std: as many positive numbers.

        Raises:
            ValueError: if there are not one or three of each, or a std is not positive.
        """
        if len(mean) not in (1, 3) or len(std) != len(mean):
            raise ValueError(f"mean has {len(mean)} and std {len(std)} numbers: both must have 1 (grey) or 3 (RGB)")
        if not min(std) > 0:
            raise ValueError(f"std is {tuple(std)}: every channel's must be positive; is the data constant?")
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))

    def forward(self, image: Tensor) -> Tensor:
        """Normalises uint8 (0 to 255) or float images in [0, 1], [B, C, H, W], C 1 or 3, to torch's default type."""
        check_image(image)
        image = to_float(image)
        mean, std = (part[: image.shape[1], None, None].to(image.dtype) for part in (self.mean, self.std))
        return (image - mean).div_(std).to(torch.get_default_dtype())
