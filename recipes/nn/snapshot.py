import copy

import torch
from torch import Tensor, nn

from recipes.nn.replicated import Replicated


class Snapshot(Replicated):
    """Networks, applied one after the other, as they were when it was taken: frozen, and always in eval mode.

    Unlike ``MomentumCopy`` it takes the buffers too, such as the running statistics of batch norm, and moves only when
    it is told to.

    Args:
        modules: the networks, first to last, such as an encoder and a head.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self._sources = list(modules)  # a list, so that they are no submodules of their copy
        self.copies = nn.Sequential(*copy.deepcopy(self._sources)).requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "Snapshot":
        """Stays in eval mode: running statistics do not move, and dropout does nothing."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Applies the copies, without gradient."""
        return self.copies(x)

    @torch.no_grad()
    def take(self) -> None:
        """Copies the networks as they are now, parameters and buffers."""
        theirs = nn.Sequential(*self._sources).state_dict()
        self.copies.load_state_dict(theirs)
