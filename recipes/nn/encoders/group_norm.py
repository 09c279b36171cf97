from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Norm = Literal["batch", "group"]


def use_norm(module: nn.Module, norm: Norm) -> None:
    """Leaves a network's batch norm as it is, or puts group norm in its place (Wu & He, 2018, arXiv:1803.08494).

    Group norm takes its statistics of each image alone: nothing depends on the batch that an image is in. The groups
    have 16 channels (Table 3: within 0.3 points of the best on ImageNet), or else the whole layer is one group.

    Args:
        module: changed in place; the weights of its norm layers start anew.
        norm: ``batch`` or ``group``.

    Raises:
        ValueError: if ``norm`` is neither.
    """
    if norm not in ("batch", "group"):
        raise ValueError(f"norm is {norm!r}: it must be 'batch' or 'group'")
    if norm == "batch":
        return
    for name, layer in list(module.named_modules()):
        if isinstance(layer, _BatchNorm):
            channels = layer.num_features
            groups = channels // 16 if channels % 16 == 0 else 1
            module.set_submodule(name, nn.GroupNorm(groups, channels, layer.eps, layer.affine))
