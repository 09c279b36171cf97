from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MultiHead(nn.Module):
    """Linear layers side by side on the same features: one for each task, all of which are there from the start.

    Args:
        in_features: F, the number of features of an image.
        sizes: how many classes each task has, all positive.

    Attributes:
        heads: the linear layers.
        out_features: how many classes there are in all.
    """

    def __init__(self, in_features: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(in_features, size) for size in sizes)
        self.out_features = sum(sizes)

    def forward(self, feature: Tensor) -> Tensor:
        """Maps features [B, F] to the logits of all tasks, one task after the other: [B, classes]."""
        return torch.cat([head(feature) for head in self.heads], 1)
