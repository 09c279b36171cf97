from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        layer.weight.data = torch.cat([head.weight.detach() for head in self.heads])
        layer.bias.data = torch.cat([head.bias.detach() for head in self.heads])
        return layer

    def apart(self, weight: Tensor, bias: Tensor) -> list[Tensor]:
        """Cuts what belongs to weight [classes, F] and bias [classes] of ``joined``, in the order of the parameters."""
        sizes = [head.out_features for head in self.heads]
        return [part for pair in zip(weight.split(sizes), bias.split(sizes), strict=True) for part in pair]
