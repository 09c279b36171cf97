from collections.abc import Callable

import torch
from torch import Tensor, nn

from recipes.augment.base import check_image, to_float

Normalization = tuple[tuple[float, ...], tuple[float, ...]]


class Normalize(nn.Module):
    """Normalises images for an encoder: (image - mean) / std per channel, image in [0, 1].

    Mean and std are in the state dict, so that a trained encoder keeps those it was trained with. Until they are set,
    std is 0 and images are not changed. Images with one channel use the first of each.

    Attributes:
        provisional: whether mean and std are those of data that the encoder was not trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("std", torch.zeros(3))  # 0, which no data has, marks that they are not set
        self.provisional = False
        self._exact: Normalization | None = None  # as given, where the buffers round

    @property
    def known(self) -> Normalization | None:
        """Mean and std that the encoder was trained with, or None if they are not set or provisional."""
        if self.provisional or not bool((self.std > 0).all()):
            return None
        mean, std = (tuple(part.tolist()) for part in (self.mean, self.std))
        return self._exact or (mean, std)

    def set(self, mean: tuple[float, ...], std: tuple[float, ...], provisional: bool = False) -> None:
        """Sets mean and std.

        Args:
            mean: one or three numbers, where values are in [0, 1]; one is used for all channels.
            std: as many positive numbers.
            provisional: whether the encoder is only used with them and not trained, so that they may be set again.

        Raises:
            ValueError: if there are not one or three of each, or a std is not positive.
        """
        if len(mean) not in (1, 3) or len(std) != len(mean):
            raise ValueError(f"mean has {len(mean)} and std {len(std)} numbers: both must have 1 (grey) or 3 (RGB)")
        if not min(std) > 0:
            raise ValueError(f"std is {tuple(std)}: every channel's must be positive; is the data constant?")
        self.mean.copy_(torch.tensor(mean))
        self.std.copy_(torch.tensor(std))
        self._exact = (tuple(mean), tuple(std))
        self.provisional = provisional

    def keep(self) -> None:
        """Keeps mean and std, because the encoder is trained with them; if they are not set, with images unchanged."""
        if not bool((self.std > 0).all()):
            self.set((0.0,), (1.0,))
        self.provisional = False

    def unset(self) -> None:
        """Forgets mean and std: images are not changed until they are set again."""
        self.mean.zero_()
        self.std.zero_()
        self._exact, self.provisional = None, False

    def forward(self, image: Tensor) -> Tensor:
        """Normalises uint8 (0 to 255) or float images in [0, 1], [B, C, H, W], C 1 or 3.

        Returns:
            Images [B, C, H, W] in torch's default type, or in float64 where the recipe is.
        """
        check_image(image)
        image = to_float(image)
        mean, std = (part[: image.shape[1], None, None].to(image.dtype) for part in (self.mean, self.std))
        std = torch.where(std > 0, std, 1)
        is_double = self.mean.dtype == torch.float64  # also after a run in float64
        return (image - mean).div_(std).to(torch.float64 if is_double else torch.get_default_dtype())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Normalize":
        def not_rounded(tensor: Tensor) -> Tensor:  # half precision would round mean and std for good
            given = fn(tensor)
            return given if given.dtype == torch.promote_types(given.dtype, torch.float32) else tensor.to(given.device)

        return super()._apply(not_rounded, recurse)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        super()._load_from_state_dict(state_dict, prefix, *rest)
        if f"{prefix}mean" in state_dict:
            self._exact, self.provisional = None, False
