"""Frozen copies of networks: a moving average, and a snapshot."""

import copy
import math

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from losses.precision import at_least_float32
from recipes.nn.precision import AtLeastFloat32
from recipes.nn.replicated import Replicated


class FrozenCopy(AtLeastFloat32):
    """A copy of networks, applied one after the other, whose parameters require no gradient.

    So no optimiser and no DDP takes them; the state dict holds all of the copy and nothing of the networks. The copy of
    a network in half precision is in float32. It is applied to inputs in half precision as under autocast.

    Args:
        modules: the networks, first to last, such as an encoder and a projection head.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self._sources = list(modules)  # a list, so that they are no submodules of their copy
        self.copies = nn.Sequential(*copy.deepcopy(self._sources)).requires_grad_(False)
        self._apply(at_least_float32)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Applies the copies, without gradient."""
        if at_least_float32(x) is x:
            return self.copies(x)
        with torch.autocast(x.device.type, x.dtype):
            return self.copies(x)


class MomentumCopy(FrozenCopy):
    """A frozen copy that follows its networks as a moving average: a target, a key encoder, a teacher.

    It begins equal to them. ``update`` moves its parameters ξ towards theirs θ, in place and in one call for all:
    ξ ← τ ξ + (1 - τ) θ (He et al., 2020, arXiv:1911.05722, Equation 2; Grill et al., 2020, arXiv:2006.07733,
    Equation 1). A recipe calls it once after each step of the optimiser.

    Buffers are not averaged: as in the code of MoCo, BYOL and Mean Teacher, the running statistics of its batch norm
    layers are those of what passes through it in train mode, and a buffer that nothing writes keeps its value.

    Args:
        modules: the networks, first to last, such as an encoder and a projection head.
    """

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Moves the parameters towards those of the networks.

        Args:
            momentum: τ, what is kept: with 0 the copy becomes equal to the networks, with 1 it stays as it is.

        Raises:
            ValueError: if ``momentum`` is not in [0, 1].
        """
        check_momentum(momentum)
        theirs = [at_least_float32(parameter) for parameter in nn.ModuleList(self._sources).parameters()]
        get_ema_multi_avg_fn(momentum)(list(self.copies.parameters()), theirs, None)


class Snapshot(FrozenCopy, Replicated):
    """A frozen copy of networks, applied one after the other, from the time of ``take``; always in eval mode.

    Unlike ``MomentumCopy`` it takes the buffers too, such as the running statistics of batch norm, and moves only when
    ``take`` is called.

    Args:
        modules: the networks, first to last, such as an encoder and a head.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        self.train()

    def train(self, mode: bool = True) -> "Snapshot":
        """Stays in eval mode: running statistics do not move, and dropout does nothing."""
        return super().train(False)

    @torch.no_grad()
    def take(self) -> None:
        """Copies the networks as they are now, parameters and buffers."""
        theirs = nn.Sequential(*self._sources).state_dict()
        self.copies.load_state_dict(theirs)


def cosine_momentum(initial: float, step: int, total_steps: int) -> float:
    """The τ of step k of K: 1 - (1 - τ₀) (cos(π k / K) + 1) / 2 (BYOL, arXiv:2006.07733, Section 3.3).

    Args:
        initial: τ₀, at the first step.
        step: k, the number of optimiser steps before this one.
        total_steps: K, of the run; at k = K, one step after the last, τ is 1.
    """
    return 1 - (1 - initial) * (math.cos(math.pi * step / total_steps) + 1) / 2


def check_momentum(momentum: float, name: str = "momentum") -> None:
    """Raises ValueError unless a momentum is in [0, 1]; ``name`` is that of the argument."""
    if not 0 <= momentum <= 1:
        raise ValueError(f"{name} is {momentum}: it must be between 0 (keeps nothing) and 1 (never moves)")
