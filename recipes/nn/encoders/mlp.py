from torch import Tensor, nn

from recipes.nn.encoders.base import Encoder, check_image
from recipes.nn.encoders.weights import load_weights


class MLP(Encoder):
    """A multilayer perceptron on the pixels, for tiny square images: linear layer, batch norm and ReLU, repeated.

    Args:
        image_size: height and width of the images in pixels.
        in_channels: number of channels C of the images, 1 or 3.
        hidden: widths of the layers; the last is the number of features.
        batch_norm: whether the layers have batch norm.
        dropout: share of the hidden units that are left out in training, in [0, 1). A run with dropout does not resume
            bit for bit.
        input_dropout: share of the pixels that are left out in training, in [0, 1).
        weights: file of pretrained weights, or a run directory (``load_weights``). If null, weights are random.

    Raises:
        ValueError: if ``image_size`` is not positive, ``hidden`` is empty, a width is not positive or a share is out of
            its range.
    """

    def __init__(
        self,
        image_size: int,
        in_channels: int = 1,
        hidden: tuple[int, ...] = (512, 512),
        batch_norm: bool = True,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        weights: str | None = None,
    ) -> None:
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}: it must be positive")
        if not hidden or min(hidden) < 1:
            raise ValueError(f"hidden is {list(hidden)}: give at least one width, all positive")
        for name, share in (("dropout", dropout), ("input_dropout", input_dropout)):
            if not 0 <= share < 1:
                raise ValueError(f"{name} is {share}: it must be at least 0 and below 1")
        layers: list[nn.Module] = [nn.Flatten()]
        if input_dropout:
            layers.append(nn.Dropout(input_dropout))
        size = in_channels * image_size**2
        for width in hidden:
            layers.append(nn.Linear(size, width, bias=not batch_norm))  # batch norm takes the mean away again
            if batch_norm:
                layers.append(nn.BatchNorm1d(width))
            layers.append(nn.ReLU(inplace=True))
            if dropout:
                layers.append(nn.Dropout(dropout))
            size = width
        super().__init__(nn.Sequential(*layers), size, in_channels)
        self.image_size = image_size
        if weights is not None:
            load_weights(self, weights)

    def forward(self, image: Tensor) -> Tensor:
        """Maps normalised float images [B, C, H, W] to features [B, F]."""
        check_image(self, image, self.image_size)
        return self.network(image)
