"""Batch norm over the global batch, and over parts of it."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from lightning.pytorch.plugins import LayerSync
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm, _LazyNormBase
from torch.overrides import TorchFunctionMode

from datamodules.loading.processes import are_several


class CrossDeviceBatchNorm(LayerSync):
    """Computes batch norm over the global batch: a plugin for the Trainer, on any kind of device.

    While a model is trained on several devices, its batch norm layers normalise with the mean and the variance of the
    batches of all devices together, and their gradients and running statistics are those of one device that has the
    whole batch. The devices' batches may differ in size. In eval mode the layers behave as usual.

    Each device's count, mean and variance are gathered and merged (Chan et al., 1979, "Updating Formulae and a Pairwise
    Algorithm for Computing Sample Variances"). One layer costs one collective forward and one backward. Unlike with
    ``torch.nn.SyncBatchNorm``, the host does not wait for a GPU.

    Layers stay the same objects, with their parameters, hooks and keys in the state dict. What a subclass does around
    the normalisation, such as the activation in timm's ``BatchNormAct2d``, is still done. ``nn.SyncBatchNorm`` and
    lazy layers that have no size yet are left alone.

    The ``recipes`` command installs it. Elsewhere it is given to the Trainer, and does nothing on a single device::

        Trainer(devices=2, plugins=CrossDeviceBatchNorm())

    Raises:
        ValueError: in training, if all devices together have one value per channel, which has no variance.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        """Makes the batch norm layers of a model normalise the global batch, in place."""
        for part in model.modules():
            if _is_local(part):
                part.__class__ = _with(_AcrossDevices, type(part))  # type: ignore[arg-type]
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Makes the layers normalise the batch of their own device only, in place."""
        for part in model.modules():
            if isinstance(part, _AcrossDevices):
                part.__class__ = type(part).__bases__[-1]
        return model


def split_batch_norm(module: nn.Module, groups: int) -> None:
    """Makes the batch norm layers of a module normalise each of several parts of a device's batch by itself, in place.

    In training, the batch is cut into ``groups`` of equal size, first to last, as if each were on a device of its own
    (the "SplitBatchNorm" of MoCo's published CIFAR-10 demo). Running statistics take the mean over the groups. In eval
    mode the layers behave as usual. ``CrossDeviceBatchNorm`` does not change such layers.

    Args:
        module: network with batch norm layers. They stay the same objects; a second call sets another number.
        groups: number of parts, >= 1; a divisor of the batch size.
    """
    for part in module.modules():
        if _is_local(part):
            part.__class__ = _with(_InGroups, type(part))  # type: ignore[arg-type]
        if isinstance(part, _InGroups):
            part.groups = groups


def average_running_statistics(module: nn.Module, gather: Callable[[Tensor], Tensor]) -> None:
    """Replaces the running statistics of batch norm by their mean over the devices, in place.

    For layers that normalise the batch of their own device. The statistics are moving averages, so the mean equals the
    moving average of the mean over all devices' batches.

    Args:
        module: network with batch norm layers.
        gather: function that joins tensors [1, ...] of all devices to [devices, ...].
    """
    layers = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    own = [buffer for part in layers for buffer in (part.running_mean, part.running_var) if buffer is not None]
    if own:
        mean = gather(torch.cat(own)[None]).mean(0)
        torch._foreach_copy_(own, list(mean.split([len(buffer) for buffer in own])))


def has_local_batch_norm(module: nn.Module) -> bool:
    """Whether a module has batch norm over the images of its own device only."""
    return any(_is_local(part) for part in module.modules())


def _is_local(module: nn.Module) -> bool:
    done = nn.SyncBatchNorm, _LazyNormBase, _AcrossDevices, _InGroups
    return isinstance(module, _BatchNorm) and not isinstance(module, done)


class _Changed(nn.Module):
    """Stands before a class of batch norm, whose own ``forward`` goes on deciding everything but the statistics."""

    def __reduce__(self) -> Any:  # pickle cannot find a class that is made here by its name
        return _blank, type(self).__bases__, self.__dict__


class _AcrossDevices(_Changed):
    """Computes the batch statistics over all devices."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and are_several():
            return self._forward_across(*args, **kwargs)
        return super().forward(*args, **kwargs)

    @torch.compiler.disable  # a trace would be cut at the collective anyway
    def _forward_across(self, *args: Any, **kwargs: Any) -> Any:
        with _BatchNormIs(_batch_norm_across):
            return super().forward(*args, **kwargs)


class _InGroups(_Changed):
    """Computes the batch statistics over each part of the device's batch."""

    groups: int

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.training and self.groups > 1:
            return self._forward_in_groups(*args, **kwargs)
        return super().forward(*args, **kwargs)

    @torch.compiler.disable
    def _forward_in_groups(self, *args: Any, **kwargs: Any) -> Any:
        with _BatchNormIs(partial(_batch_norm_in_groups, self.groups)):
            return super().forward(*args, **kwargs)


def _blank(mixin: type[nn.Module], local: type[nn.Module]) -> nn.Module:
    changed = _with(mixin, local)  # type: ignore[arg-type]
    return changed.__new__(changed)


@cache
def _with(mixin: type[nn.Module], local: type[nn.Module]) -> type[nn.Module]:
    return type(f"{mixin.__name__.strip('_')}{local.__name__}", (mixin, local), {})


class _BatchNormIs(TorchFunctionMode):
    """Within it, ``F.batch_norm`` is another function."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (self.function if func is F.batch_norm else func)(*args, **(kwargs or {}))


def _batch_norm_in_groups(
    groups: int,
    x: Tensor,  # [N, C, ...]
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    if len(x) % groups:
        raise ValueError(f"a batch of {len(x)} does not divide into {groups} groups for batch norm")
    statistics = x.new_zeros(2, groups, x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    # With momentum 1, the running statistics of a part are its own.
    weight, bias = (part if part is None else part.to(statistics.dtype) for part in (weight, bias))
    parts = zip(x.chunk(groups), *statistics)
    y = torch.cat([F.batch_norm(part, mean, var, weight, bias, True, 1.0, eps) for part, mean, var in parts])
    if running_mean is not None and running_var is not None:
        mean, var = statistics.mean(1)
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_(var.to(running_var.dtype), momentum)
    return y


def _batch_norm_across(
    x: Tensor,  # [N, C, ...]
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if not training:
        return F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)
    count, mean, var = _statistics(x.detach())
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * (count / (count - 1))).to(running_var.dtype), momentum)
    dtype = torch.promote_types(x.dtype, torch.float32)
    weight, bias = (None if p is None else p.to(dtype) for p in (weight, bias))
    return _Normalize.apply(x, weight, bias, mean.to(dtype), var.to(dtype), count, eps)


def _statistics(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How many values each channel has on all devices together, their mean [C] and their biased variance [C]."""
    channels = x.shape[1]
    own = x.new_zeros(1 + 2 * channels, dtype=torch.float64)  # an empty batch counts nothing
    if x.numel():
        running = x.new_zeros(channels, dtype=torch.promote_types(x.dtype, torch.float32))  # gives the type, no more
        own[0] = x.numel() // channels
        own[1:] = torch.cat(torch.batch_norm_update_stats(x, running, running, momentum=0.0))
    everyones = own.new_empty(distributed.get_world_size(), len(own))
    distributed.all_gather(list(everyones), own)
    counts, means, variances = everyones.split([1, channels, channels], dim=1)  # [devices, 1], 2 × [devices, C]
    count = counts.sum()
    if x.numel() <= channels and count <= 1:  # a GPU is only waited for where this device's batch has no variance
        raise ValueError(f"Expected more than 1 value per channel when training, got {int(count)} on all devices")
    share = counts / count
    mean = (share * means).sum(0)
    return count, mean, (share * (variances + (means - mean) ** 2)).sum(0)


class _Normalize(Function):
    """Scales by a mean and a variance that are those of the global batch, also for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        count: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """With x̂ = (x − mean) / σ, dx = weight / σ · (dy − mean of dy − x̂ · mean of dy·x̂), means over all devices."""
        x, weight, mean, var, count = ctx.saved_tensors
        if dy.stride() != x.stride():
            dy = torch.empty_like(x).copy_(dy)  # the kernel is slow on two layouts
        sums = mean.new_zeros(2, len(mean))  # of dy·x̂ and of dy on this device: DDP averages them
        if x.numel():
            constant = (dy, x, weight, mean, var, None, None, False, ctx.eps, (False, True, True))
            sums = torch.stack(torch.ops.aten.native_batch_norm_backward(*constant)[1:])
        dx = None
        if ctx.needs_input_grad[0]:
            total = sums.clone()
            distributed.all_reduce(total)
            scale = torch.rsqrt(var + ctx.eps) * (1 if weight is None else weight)
            by_x, by_one = total * (-scale / count)
            dx = F.batch_norm(x, mean, var, by_x, by_one, eps=ctx.eps)
            dx.addcmul_(dy, scale.to(dx.dtype).view(-1, *[1] * (x.dim() - 2)))  # mixed types are slow
        given = dx, *sums, None, None, None, None
        return tuple(gradient if needed else None for gradient, needed in zip(given, ctx.needs_input_grad))
