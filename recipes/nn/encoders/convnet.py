from torch import nn

from recipes.nn.encoders.base import Encoder
from recipes.nn.encoders.group_norm import Norm, use_norm
from recipes.nn.encoders.weights import load_weights


class ConvNet(Encoder):
    """A small convolutional network for tiny images (8 to 32 pixels): fast on any machine.

    Each stage is a 3 × 3 convolution, batch norm and ReLU; 2 × 2 max-pooling stands between the stages,
    and the mean over the image at the end. Takes images of any size.

    Args:
        widths: channels of the stages; the last is the number of features.
        in_channels: number of channels C of the images, 1 or 3.
        norm: ``batch``, or ``group``: statistics of each image alone.
        weights: file of pretrained weights, or a run directory (``load_weights``). If null, weights are random.

    Raises:
        ValueError: if ``widths`` is empty, a width not positive, or ``norm`` unknown.
    """

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 64, 128),
        in_channels: int = 1,
        norm: Norm = "batch",
        weights: str | None = None,
    ) -> None:
        if not widths or min(widths) < 1:
            raise ValueError(f"widths are {list(widths)}: give at least one, all positive")
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            if layers:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))  # so that a side of one pixel stays one pixel
            layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers.append(nn.ReLU(inplace=True))
            channels = width
        super().__init__(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels, in_channels)
        use_norm(self, norm)
        if weights is not None:
            load_weights(self, weights)
