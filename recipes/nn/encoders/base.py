import inspect
from typing import Any

from torch import Tensor, nn


class Encoder(nn.Module):
    """Maps images to features; every recipe trains one.

    The networks of ``recipes.nn`` are subclasses. To use any other network, wrap it:
    ``Encoder(network, feature_dim=512, in_channels=3)``.

    Args:
        network: maps float images [B, C, H, W] to features [B, F].
        feature_dim: F, the number of features of an image, > 0.
        in_channels: number of channels C of the images, 1 or 3.

    Attributes:
        pretrained: whether it was made with weights that were trained before.
        normalization: mean and standard deviation of each channel that the weights were trained with, where that is
            known; images are then normalised by them, and not by those of the data.
    """

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]
    pretrained = False
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def __new__(cls, *args: Any, **options: Any) -> "Encoder":
        """Notes how the encoder was made, for ``fresh``."""
        encoder = super().__new__(cls)
        encoder.__dict__["_made_with"] = (args, options)
        return encoder

    def __init__(self, network: nn.Module, feature_dim: int, in_channels: int = 3) -> None:
        super().__init__()
        self.network = network
        self.feature_dim = feature_dim
        self.in_channels = in_channels

    def forward(self, image: Tensor) -> Tensor:
        """Maps normalised float images [B, C, H, W] to features [B, F]."""
        return self.network(image)

    @property
    def made_with(self) -> dict[str, Any]:
        """The arguments it was made with, by name."""
        args, options = self._made_with
        _, *given = inspect.signature(type(self).__init__).bind(self, *args, **options).arguments.items()
        return dict(given)

    def fresh(self) -> "Encoder":
        """The same network with random weights.

        Raises:
            ValueError: if the encoder wraps a network that somebody else has made.
        """
        given = self.made_with
        if "network" in given:
            raise ValueError(
                f"an {type(self).__name__} around a network of your own cannot be made anew: give a new one, or choose "
                "an encoder of recipes.nn, such as TorchvisionEncoder"
            )
        return type(self)(**{**given, **{name: value for name, value in _UNTRAINED.items() if name in given}})


_UNTRAINED = {"weights": None, "pretrained": False}


def check_image(encoder: Encoder, image: Tensor, size: int) -> None:
    """Raises a ValueError unless the images [B, C, H, W] are those that an encoder of one image size was made for."""
    if image.shape[1:] != (encoder.in_channels, size, size):
        given = " × ".join(str(n) for n in image.shape[1:])
        raise ValueError(
            f"images are {given} (channels × height × width), but this {type(encoder).__name__} was made for "
            f"{encoder.in_channels} × {size} × {size}: set its in_channels and image_size, or resize the images"
        )
