import inspect
from typing import Any

from torch import Tensor, nn

from datamodules.reading import Reading
from recipes.augment.normalize import Normalization, Normalize


class Encoder(nn.Module):
    """Maps images to features; every recipe trains one.

    The networks of ``recipes.nn`` are subclasses. To use any other network, wrap it:
    ``Encoder(network, feature_dim=512, in_channels=3)``.

    Args:
        network: maps float images [B, C, H, W] to features [B, F].
        feature_dim: F, the number of features of an image, > 0.
        in_channels: number of channels C of the images, 1 or 3.

    Attributes:
        pretrained: whether the weights were trained: loaded from a file or a checkpoint, or trained by a recipe.
        input_normalize: normalises images as they were in training. The recipe that trains the encoder uses this module
            and keeps it in checkpoints. ``forward`` takes images that it has normalised.
        reading: how the images were read that the weights were trained on, if it is known. DataModules read images in
            the same way, unless their arguments say otherwise.
    """

    _made_with: tuple[tuple[Any, ...], dict[str, Any]]
    input_normalize: Normalize
    pretrained = False
    reading = Reading()

    def __new__(cls, *args: Any, **options: Any) -> "Encoder":
        """Notes how the encoder was made, for ``fresh``, and that no normalisation is set."""
        encoder = super().__new__(cls)
        # not a submodule: the recipe has it, and the names in an encoder's state_dict are those of its network
        encoder.__dict__.update(_made_with=(args, options), input_normalize=Normalize())
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
    def normalization(self) -> Normalization | None:
        """Mean and standard deviation of each channel that the weights were trained with; None if they are not known.

        Images are normalised by them, and not by those of the data. For grey images, setting those of RGB images sets
        their mean over the channels.
        """
        return self.input_normalize.known

    @normalization.setter
    def normalization(self, value: Normalization | None) -> None:
        if value is None:
            self.input_normalize.unset()
        else:
            mean, std = value
            if self.in_channels == 1:
                mean, std = ((sum(numbers) / len(numbers),) * len(numbers) for numbers in value)
            self.input_normalize.set(mean, std)

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
        made = type(self)(**{**given, **{name: value for name, value in _UNTRAINED.items() if name in given}})
        made.reading = self.reading
        return made


_UNTRAINED = {"weights": None, "pretrained": False, "normalization": None}
_NORMALIZATIONS: dict[str, Normalization] = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


def named_normalization(name: str) -> Normalization:
    """The mean and standard deviation of the images of a data set.

    Raises:
        ValueError: if there is none of that name.
    """
    if name not in _NORMALIZATIONS:
        raise ValueError(f"normalization is {name!r}: it must be {' or '.join(map(repr, _NORMALIZATIONS))}, or null")
    return _NORMALIZATIONS[name]


def check_image(encoder: Encoder, image: Tensor, size: int) -> None:
    """Raises a ValueError unless the images [B, C, H, W] are those that an encoder of one image size was made for."""
    if image.shape[1:] != (encoder.in_channels, size, size):
        given = " × ".join(str(n) for n in image.shape[1:])
        raise ValueError(
            f"images are {given} (channels × height × width), but this {type(encoder).__name__} was made for "
            f"{encoder.in_channels} × {size} × {size}: set its in_channels and image_size, or resize the images"
        )
