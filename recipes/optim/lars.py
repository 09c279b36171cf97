from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT


class LARS(Optimizer):
    """Layer-wise adaptive rate scaling, for large batches (You et al., 2017, arXiv:1708.03888, Algorithm 1).

    Every tensor w of parameters moves by a length in proportion to its own:

    .. code-block:: text

        g = gradient + weight_decay * w
        ratio = trust_coefficient * |w| / (|g| + eps), and 1 where |w| or |g| is 0
        v = momentum * v + lr * ratio * g
        w = w - v        (nesterov: w - momentum * v - lr * ratio * g)

    Here |x| is the Euclidean length of all of x. The paper divides by the sum of the lengths of the gradient and of the
    decayed weights; this, like the code of SimCLR (``lars_optimizer.py``), by the length of their sum. As in both, the
    velocity holds the lr of each step (torch's SGD multiplies by the lr afterwards).

    A parameter group with ``lars_exclude: True`` has ratio 1, which is SGD with momentum; ``parameter_groups`` makes
    one of norm layers and biases. Nothing else excludes: a weight decay of 0 does not.

    Args:
        params: parameters or groups of them.
        lr: learning rate, >= 0. It is multiplied by the trust coefficient, so it is large (SimCLR: 0.3 × batch
            size / 256).
        momentum: momentum, in [0, 1).
        weight_decay: weight of the L2 penalty, >= 0 (SimCLR: 1e-6).
        trust_coefficient: eta in the paper, > 0 (SimCLR: 0.001).
        eps: number added to the divisor of the trust ratio, >= 0 (the paper and SimCLR: 0).
        nesterov: whether to step by the velocity of the next step; needs momentum.

    Raises:
        ValueError: if an argument is out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 0.001,
        eps: float = 1e-8,
        nesterov: bool = False,
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}: it must be at least 0")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}: it must be at least 0 and below 1")
        if not trust_coefficient > 0:
            raise ValueError(f"trust_coefficient is {trust_coefficient}: it must be positive")
        if nesterov and momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "nesterov": nesterov,
            "lars_exclude": False,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Takes one step, with the gradients that are there or those that the closure makes, and returns its loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            # foreach operations want one device and dtype
            buckets = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    buckets[parameter.device, parameter.dtype].append(parameter)
            for parameters in buckets.values():
                self._step(parameters, group)
        return loss

    def _step(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        gradients: Any = [parameter.grad for parameter in parameters]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        if group["lars_exclude"]:
            steps = torch._foreach_mul(gradients, group["lr"])
        else:
            length = torch.stack(torch._foreach_norm(parameters))
            slope = torch.stack(torch._foreach_norm(gradients))
            ratio = group["trust_coefficient"] * length / (slope + group["eps"])
            ratio = torch.where((length > 0) & (slope > 0), ratio, 1.0)  # on the device: the host never waits
            steps = torch._foreach_mul(gradients, (group["lr"] * ratio).unbind())
        velocities = []
        for parameter in parameters:
            state = self.state[parameter]
            if "velocity" not in state:
                state["velocity"] = torch.zeros_like(parameter)
            velocities.append(state["velocity"])
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, steps)
        if group["nesterov"]:
            torch._foreach_add_(steps, velocities, alpha=group["momentum"])
            torch._foreach_sub_(parameters, steps)
        else:
            torch._foreach_sub_(parameters, velocities)
