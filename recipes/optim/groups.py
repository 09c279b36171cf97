from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.lr_scheduler import CyclicLR, LRScheduler, OneCycleLR

# _NormBase: batch norm, SyncBatchNorm and instance norm of every dimension
NORM_LAYERS: tuple[type[nn.Module], ...] = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """Groups the trainable parameters of a module by whether they have weight decay.

    Without weight decay are

    - the parameters of norm layers, by type, and all biases (Goyal et al., 2017, arXiv:1706.02677, Section 5.1, for
      batch norm; the code of SimCLR for both);
    - what a submodule lists in ``no_weight_decay()``, a set of names of its own parameters, as the networks of timm do:
      class tokens and position embeddings of vision transformers (as in the code of DeiT, Touvron et al., 2021,
      arXiv:2012.12877, and of BEiT and MAE).

    Their group has ``weight_decay: 0.0``, and ``lars_exclude: True`` for ``LARS``; other optimisers do not read that
    key. The group of the others leaves every option to the optimiser.

    Args:
        module: whose parameters with ``requires_grad`` are sorted, each once even if submodules share it; a parameter
            that is excluded in one place is excluded.

    Returns:
        One or two groups for an optimiser, none of them empty; no group if nothing is trainable.
    """
    excluded = set()
    for submodule in module.modules():
        for name, parameter in submodule.named_parameters(recurse=False):
            if isinstance(submodule, NORM_LAYERS) or "bias" in name.split("_"):  # bias, in_proj_bias, bias_ih_l0
                excluded.add(parameter)
        if callable(listed := getattr(submodule, "no_weight_decay", None)):
            parameters = dict(submodule.named_parameters())
            excluded |= {parameters[name] for name in listed() if name in parameters}
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trainable if parameter not in excluded]},
        {
            "params": [parameter for parameter in trainable if parameter in excluded],
            "weight_decay": 0.0,
            "lars_exclude": True,
        },
    ]
    return [group for group in groups if group["params"]]


def keep_lr_factors(scheduler: LRScheduler) -> None:
    """Gives the parameter groups their ``lr_factor`` back where a schedule of torch has taken it.

    ``OneCycleLR`` and ``CyclicLR`` set learning rates of their own for all groups alike; every other schedule starts
    from those that the groups have.

    Args:
        scheduler: just made.
    """
    if not isinstance(scheduler, OneCycleLR | CyclicLR):
        return
    groups = scheduler.optimizer.param_groups
    for group in groups:
        for name in ("lr", "initial_lr", "max_lr", "min_lr"):
            if name in group:
                group[name] *= group.get("lr_factor", 1.0)
    for name in ("base_lrs", "max_lrs"):
        if hasattr(scheduler, name):
            lrs = zip(getattr(scheduler, name), groups, strict=True)
            setattr(scheduler, name, [lr * group.get("lr_factor", 1.0) for lr, group in lrs])
