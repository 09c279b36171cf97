"""Runs of a Trainer begin with a clean recipe, and leave its networks as they were lent to it."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import Metric

from recipes.base.checks import source_of
from recipes.nn.finite import listed

if TYPE_CHECKING:
    from recipes.base.recipe import Recipe

_SINGLE = ("32-true", "16-mixed", "bf16-mixed")  # precisions in which the Trainer converts no weights


class AsLent:
    """A network as it was before a run: which parameters learn, modes and classes of modules, types of weights.

    Args:
        network: whose modules, parameters and buffers are noted.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = [(part, type(part), part.training) for part in network.modules()]
        self._learns = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
        self._tensors: list[tuple[Any, str, Tensor]] = [  # by name: a conversion replaces buffers
            (tensors, name, tensor.data)
            for part in network.modules()
            for tensors in (part._parameters, part._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]

    def restore(self) -> None:
        """Undoes what a run has changed, and drops the gradients of its last step.

        Weights keep what they have learned. If the Trainer converted them to half precision, they get their former type
        back, and unless they have changed since, their former value. A network that has learned in float64 stays in it.
        """
        for part, kind, training in self._modules:
            part.__class__ = kind  # batch norm in parts or across devices is a change of the class
            part.training = training
        for parameter, learns in self._learns:
            parameter.requires_grad_(learns)
            parameter.grad = None
        converted = [(tensors[name], old) for tensors, name, old in self._tensors if tensors[name].dtype != old.dtype]
        if not any(_is_finer(now.data.to(before.device), before) for now, before in converted):
            for now, before in converted:
                now.data = _unrounded(now.data.to(before.device), before)


def _is_finer(now: Tensor, before: Tensor) -> bool:
    """Whether a tensor has values that its former type cannot hold."""
    return torch.promote_types(now.dtype, before.dtype) == now.dtype and not torch.equal(now, before.to(now.dtype))


def _unrounded(now: Tensor, before: Tensor) -> Tensor:
    """A tensor in its former type, with its former value if a conversion alone has changed it."""
    return before if torch.equal(now, before.to(now.dtype)) else now.to(before.dtype)


class CleanRuns(Callback):
    """Lets a recipe begin each run of a Trainer without remains of the run before, and give back what it was lent.

    A recipe changes its encoder for a run: it freezes parameters, puts layers into eval mode, or splits batch norm. The
    Trainer converts weights to its precision. This callback undoes such changes when the run ends, also if an exception
    or a keyboard interrupt ends it. A run begins in the precision of the Trainer, with empty metrics; training begins
    in train mode and without gradients. Parameters that are frozen before the run, and not by the recipe, are named,
    and so are layers that alone were in eval mode.

    A Trainer keeps its DataModule and its progress. Its former DataModule is not that of a run on other loaders, and a
    Trainer that has reached its limit before is refused.

    Every recipe adds this callback to its Trainer.

    Raises:
        ValueError: if the Trainer has reached ``max_epochs`` or ``max_steps`` in an earlier run.
    """

    _resumes = False

    def setup(self, trainer: Trainer, pl_module: "Recipe", stage: str) -> None:  # type: ignore[override]
        """Notes how the networks are, before the recipe changes them."""
        self._resumes = False
        if source_of(trainer, stage) is not pl_module.datamodule:
            trainer.datamodule = None  # type: ignore[attr-defined]
        pl_module.give_back()
        pl_module.lend(pl_module)
        pl_module.step_columns.clear()
        for part in pl_module.modules():
            if isinstance(part, Metric) and not part.state_dict():  # others are results, which checkpoints keep
                part.reset()
        if trainer.precision in _SINGLE:
            pl_module.to(torch.get_default_dtype())  # after a run in another precision
        if stage == "fit":
            encoder = pl_module.encoder
            fixed = [name for name, part in encoder.named_modules() if encoder.training and not part.training]
            pl_module.train()
            pl_module.zero_grad()
            if moved := [name for name in fixed if encoder.get_submodule(name).training]:
                rank_zero_warn(
                    f"layers of the encoder were in eval mode and train now: {listed(moved)}. An encoder "
                    "whose train() leaves them in eval mode keeps them"
                )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: "Recipe", checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Notes that the run goes on with a checkpoint, which may be the last of its run."""
        self._resumes = True

    def on_fit_start(self, trainer: Trainer, pl_module: "Recipe") -> None:  # type: ignore[override]
        """Refuses a Trainer that has nothing left to do; names parameters that are frozen, and not by the recipe."""
        epochs, steps = trainer.current_epoch, trainer.global_step
        ended = epochs >= (trainer.max_epochs or 0) > 0 or steps >= trainer.max_steps > 0
        if ended and steps > 0 and not self._resumes and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            raise ValueError(
                f"the Trainer has reached its limit in an earlier run, after step {steps}, and would train no further: "
                "create a new Trainer"
            )
        frozen = set(pl_module.frozen_parameters())
        named = pl_module.encoder.named_parameters()
        if names := [name for name, each in named if not each.requires_grad and each not in frozen]:
            rank_zero_warn(
                f"{len(names)} parameters of the encoder have requires_grad=False and are not trained: "
                f"{listed(names)}. Call encoder.requires_grad_(True) before fit to train them"
            )

    def teardown(self, trainer: Trainer, pl_module: "Recipe", stage: str) -> None:  # type: ignore[override]
        """Restores the networks after the run."""
        pl_module.give_back()

    def on_exception(self, trainer: Trainer, pl_module: "Recipe", exception: BaseException) -> None:  # type: ignore[override]
        """Restores the networks after a run that failed or was interrupted."""
        pl_module.give_back()
