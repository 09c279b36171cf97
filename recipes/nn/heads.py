from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def projection_head(
    in_dim: int,
    hidden_dim: int,
    out_dim: int,
    layers: int = 2,
    batch_norm: bool = True,
    output_batch_norm: bool = False,
    output_bias: bool = True,
) -> nn.Sequential:
    """A multilayer perceptron that maps features to projections, on which a loss is computed.

    =================  ======  ==========  =================  ========================================================
    as in              layers  batch_norm  output_batch_norm  source
    =================  ======  ==========  =================  ========================================================
    SimCLR             2       yes         yes                arXiv:2002.05709, Section 4.2; its code, ``model_util.py``
    SimCLR v2          3       yes         yes                arXiv:2006.10029, Section 2
    MoCo v2            2       no          no                 arXiv:2003.04297, Section 3
    BYOL               2       yes         no                 arXiv:2006.07733, Section 3.3; its code: no output_bias
    SwAV               2       yes         no                 arXiv:2006.09882
    =================  ======  ==========  =================  ========================================================

    Args:
        in_dim: number of features.
        hidden_dim: width of the hidden layers.
        out_dim: width of the output.
        layers: number of linear layers, at least 1; ReLU stands between them.
        batch_norm: whether batch norm stands before every ReLU.
        output_batch_norm: whether batch norm, with a scale and without a shift, follows the last layer.
        output_bias: whether the last layer has a bias; never under ``output_batch_norm``, which takes the mean away.

    Returns:
        Maps [B, in_dim] to [B, out_dim].

    Raises:
        ValueError: if ``layers`` or a width is not positive.
    """
    if layers < 1:
        raise ValueError(f"layers is {layers}: it must be at least 1")
    if min(in_dim, hidden_dim, out_dim) < 1:
        raise ValueError(f"widths of a head are {in_dim}, {hidden_dim} and {out_dim}: they must be positive")
    widths = [in_dim] + [hidden_dim] * (layers - 1)
    modules: list[nn.Module] = []
    for size, width in zip(widths, widths[1:]):
        modules.append(nn.Linear(size, width, bias=not batch_norm))  # batch norm takes the mean away again
        if batch_norm:
            modules.append(nn.BatchNorm1d(width))
        modules.append(nn.ReLU(inplace=True))
    modules.append(nn.Linear(widths[-1], out_dim, bias=output_bias and not output_batch_norm))
    if output_batch_norm:
        norm = nn.BatchNorm1d(out_dim)
        norm.bias.requires_grad_(False)  # SimCLR's code: no shift in the last layer
        modules.append(norm)
    return nn.Sequential(*modules)


class MultiHead(nn.Module):
    """Linear layers side by side on the same features: one for each task, all of which are there from the start.

    Args:
        in_features: F, the number of features of an image.
        sizes: how many classes each task has, all positive.

    Attributes:
        in_features: F.
        heads: the linear layers.
        out_features: how many classes there are in all.
    """

    def __init__(self, in_features: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.heads: Any = nn.ModuleList(nn.Linear(in_features, size) for size in sizes)
        self.in_features, self.out_features = in_features, sum(sizes)

    def forward(self, feature: Tensor) -> Tensor:
        """Maps features [B, F] to the logits of all tasks, one task after the other: [B, classes]."""
        weight = torch.cat([head.weight for head in self.heads])
        return F.linear(feature, weight, torch.cat([head.bias for head in self.heads]))  # one product is faster

    def joined(self) -> nn.Linear:
        """One linear layer that gives the same, with copies of the weights."""
        layer = nn.utils.skip_init(nn.Linear, self.in_features, self.out_features)
        layer.weight = nn.Parameter(torch.cat([head.weight.detach() for head in self.heads]))
        layer.bias = nn.Parameter(torch.cat([head.bias.detach() for head in self.heads]))
        return layer

    def apart(self, weight: Tensor, bias: Tensor) -> list[Tensor]:
        """Cuts what belongs to weight [classes, F] and bias [classes] of ``joined``, in the order of the parameters."""
        sizes = [head.out_features for head in self.heads]
        return [part for pair in zip(weight.split(sizes), bias.split(sizes), strict=True) for part in pair]
