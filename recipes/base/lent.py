"""Runs of a Trainer begin with a clean recipe, and leave its networks as they were lent to it."""

from typing import TYPE_CHECKING, Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torchmetrics import Metric

from recipes.nn.finite import listed

if TYPE_CHECKING:
    from recipes.base.recipe import Recipe


class AsLent:
    """How the networks of a recipe were before a run: which parameters learn, the modes of modules, and their classes.

    Weights and buffers are not part of it: training them is what networks are lent for.

    Args:
        network: whose modules and parameters are noted.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = [(part, type(part), part.training) for part in network.modules()]
        self._parameters = [(parameter, parameter.requires_grad) for parameter in network.parameters()]

    def restore(self) -> None:
        """Undoes what a run has changed, and drops the gradients of its last step."""
        for part, kind, training in self._modules:
            part.__class__ = kind  # batch norm in parts or across devices is a change of the class
            part.training = training
        for parameter, learns in self._parameters:
            parameter.requires_grad_(learns)
            parameter.grad = None


class CleanRuns(Callback):
    """Lets a recipe begin each run of a Trainer without remains of the run before, and give back what it was lent.

    A recipe changes its encoder for a run: it freezes parameters, puts layers into eval mode, or splits batch norm.
    This callback undoes such changes when the run ends, also if an exception or a keyboard interrupt ends it. Training
    begins in train mode, without gradients and with empty metrics. Parameters that are frozen before the run, and not
    by the recipe, are named.

    Every recipe adds this callback to its Trainer.
    """

    def __init__(self) -> None:
        self._lent: AsLent | None = None

    def setup(self, trainer: Trainer, pl_module: "Recipe", stage: str) -> None:  # type: ignore[override]
        """Notes how the networks are, before the recipe changes them."""
        self._restore()
        self._lent = AsLent(pl_module)
        pl_module.step_columns.clear()
        for part in pl_module.modules():
            if isinstance(part, Metric) and not part.state_dict():  # others are results, which checkpoints keep
                part.reset()
        if stage == "fit":
            pl_module.train()
            pl_module.zero_grad()

    def on_fit_start(self, trainer: Trainer, pl_module: "Recipe") -> None:  # type: ignore[override]
        """Names the parameters that are frozen, and not by the recipe."""
        frozen = set(pl_module.frozen_parameters())
        named = pl_module.encoder.named_parameters()
        if names := [name for name, each in named if not each.requires_grad and each not in frozen]:
            rank_zero_warn(
                f"{len(names)} parameters of the encoder have requires_grad=False and are not trained: "
                f"{listed(names)}. Call encoder.requires_grad_(True) before fit to train them"
            )

    def teardown(self, trainer: Trainer, pl_module: "Recipe", stage: str) -> None:  # type: ignore[override]
        """Restores the networks after the run."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        """Restores the networks after a run that failed or was interrupted."""
        self._restore()

    def _restore(self) -> None:
        if self._lent is not None:
            self._lent.restore()
            self._lent = None
