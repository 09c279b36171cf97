"""Features of past images: the same on every device, saved and resumed."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from recipes.nn.copies import check_momentum
from recipes.nn.replicated import Replicated


class Memory(Replicated):
    """A buffer of unit vectors that is updated during training and has no gradient.

    Every device is given what all devices have computed (``Recipe.gather``), and begins with the same random vectors,
    so that all hold the same.

    Args:
        size: how many vectors, at least 0.
        dim: length of each, at least 1.

    Attributes:
        features: the unit vectors [size, dim].

    Raises:
        ValueError: if a number is out of its range.
    """

    features: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 0 or dim < 1:
            raise ValueError(
                f"a {type(self).__name__} of {size} vectors of length {dim}: sizes are at least 0, lengths at least 1"
            )
        self.register_buffer("features", torch.empty(0, dim))
        self.allocate(size)

    def allocate(self, size: int) -> None:
        """Fills it with ``size`` random unit vectors, the same in every process."""
        random = torch.randn(size, self.features.shape[1], generator=torch.Generator().manual_seed(0))
        self.features = F.normalize(random).to(self.features)

    def __len__(self) -> int:
        return len(self.features)


class FeatureQueue(Memory):
    """The features of the last images: first in, first out (MoCo: He et al., 2020, arXiv:1911.05722, Section 3.2).

    Args:
        size: K, how many features it holds; until so many have come, random unit vectors are in their place.
        dim: length of a feature.

    Attributes:
        features: the unit vectors [K, D], in no particular order.
        position: the row that is overwritten next, int64, a scalar.

    Raises:
        ValueError: if a number is not positive.
    """

    position: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__(size, dim)
        if size < 1:
            raise ValueError(f"a queue of {size} features: it must hold at least 1")
        self.register_buffer("position", torch.tensor(0))

    @torch.no_grad()
    def push(self, features: Tensor) -> None:
        """Puts in features [N, D] of all devices, and drops as many of the oldest; N need not divide the size."""
        size = len(self)
        rows = (self.position + torch.arange(len(features), device=self.position.device)) % size
        self.features[rows[-size:]] = F.normalize(features[-size:].to(self.features.dtype))
        self.position.add_(len(features)).remainder_(size)


class MemoryBank(Memory):
    """One feature for every image (instance discrimination: Wu et al., 2018, arXiv:1805.01978, Section 3.1).

    Args:
        size: number of images, for each of which a random unit vector stands at first; 0 leaves it to ``allocate``.
        dim: length of a feature.
        momentum: share of the old feature in the new one, in [0, 1]; 0 replaces it.

    Attributes:
        features: the unit vectors [N, D], by the index of the image.

    Raises:
        ValueError: if a number is out of its range.
    """

    def __init__(self, size: int, dim: int, momentum: float = 0.5) -> None:
        super().__init__(size, dim)
        check_momentum(momentum)
        self.momentum = momentum

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        if not len(self) and f"{prefix}features" in state_dict:
            self.allocate(len(state_dict[f"{prefix}features"]))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor) -> None:
        """Moves the features of images towards new ones, and scales them to length one.

        Args:
            index: of the images of all devices, int64 [N], each once.
            features: of these images [N, D]; need not be normalised.
        """
        new = F.normalize(features.to(self.features.dtype))
        self.features[index] = F.normalize(self.features[index].lerp(new, 1 - self.momentum))
