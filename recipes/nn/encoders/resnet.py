import torch.nn.functional as F
from torch import Tensor, nn

from recipes.nn.encoders.base import Encoder
from recipes.nn.encoders.group_norm import Norm, use_norm
from recipes.nn.encoders.weights import load_weights


class ResNet(Encoder):
    """The residual network for 32 × 32 images (He et al., 2016, arXiv:1512.03385, Section 4.2).

    A 3 × 3 convolution, then three stages of n blocks of two 3 × 3 convolutions, with ``width``, 2 ``width`` and
    4 ``width`` channels at full, half and quarter resolution; shortcuts without parameters (option A of the paper);
    the mean over the image. With a classifier on top it has depth = 6n + 2 layers; with depth 20 and width 16,
    0.27 M parameters. For the ResNets of ImageNet see ``TorchvisionEncoder``.

    Args:
        depth: number of layers, 6n + 2: 20, 26, 32, 38, 44, 50, 56, ...
        width: channels of the first stage; there are four times as many features.
        in_channels: number of channels C of the images, 1 or 3.
        zero_init_residual: whether every block starts as the identity, by a zero scale in its last batch norm
            (Goyal et al., 2017, arXiv:1706.02677, Section 5.1).
        norm: ``batch``, or ``group``: statistics of each image alone.
        weights: file of pretrained weights, or a run directory (``load_weights``). If null, weights are random.

    Raises:
        ValueError: if ``depth`` is not 6n + 2, ``width`` not positive, or ``norm`` unknown.
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        in_channels: int = 3,
        zero_init_residual: bool = False,
        norm: Norm = "batch",
        weights: str | None = None,
    ) -> None:
        if depth < 8 or (depth - 2) % 6:
            below = max(8, (depth - 2) // 6 * 6 + 2)
            raise ValueError(f"depth is {depth}: it must be 6n + 2, so the nearest are {below} and {below + 6}")
        if width < 1:
            raise ValueError(f"width is {width}: it must be positive")
        blocks = (depth - 2) // 6
        stages = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
        for stage in range(3):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                stages.append(_Block(channels, width << stage, stride))
                channels = width << stage
        super().__init__(nn.Sequential(*stages, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels, in_channels)
        # the first convolution, and then the first block of each stage
        self.first_of_stages = ["network.0", *(f"network.{3 + stage * blocks}" for stage in range(3))]
        use_norm(self, norm)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., 2015, arXiv:1502.01852, Equation 14
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, _Block) and zero_init_residual:
                nn.init.zeros_(module.bn2.weight)
        if weights is not None:
            load_weights(self, weights)


class _Block(nn.Module):
    """Two 3 × 3 convolutions and a shortcut (Figure 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1 or self.new_channels:  # option A: every second pixel, and zeros for the new channels
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))
        return self.relu(y + x)
