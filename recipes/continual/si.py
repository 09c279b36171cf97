from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor
from torch.optim import Optimizer

from datamodules import TaskBatch, Tasks
from recipes.augment import Views
from recipes.base.position import share_of_step
from recipes.continual.base import ContinualRecipe
from recipes.continual.penalty import held_parameters, with_penalty
from recipes.nn import Encoder, QuadraticPenalty, TensorList


class SI(ContinualRecipe):
    """Continual learning: penalises changes of weights that reduced the loss (Zenke et al., 2017, arXiv:1703.04200).

    Each weight is penalised in proportion to how much it reduced earlier losses. During a task, each optimiser step
    adds minus the gradient of a weight times its change to the weight's ω. The sum over weights and steps approximates
    the decrease of the loss in the task. At the end of the task,

        Ω ← max(0, Ω + ω / (Δ² + ξ)),

    where Δ is the total change of the weight during the task. In later tasks the loss is L + c Σ Ω (θ - θ*)², where θ*
    are the weights at the end of the last task. As in the published code, the gradients in ω are those of L without the
    penalty, and Ω is not negative.

    The gradients are taken before clipping, and the changes are those that the optimiser made. ``train/penalty_ratio``
    is the penalty over the cross-entropy.

    If the task is known at test time, SI forgets little. In the scenario ``class`` its accuracy stays near that of
    fine-tuning, as in the literature (van de Ven & Tolias, 2019, arXiv:1904.07734, Table 4), because a penalty on
    weights does not train the network to distinguish the tasks.

    Args:
        si_weight: weight c of the penalty, >= 0. With 0, the method is fine-tuning.
        damping: damping ξ, > 0. It bounds the importance Ω of weights that have hardly changed.
        Other arguments: see ``ContinualRecipe``.

    Raises:
        ValueError: if ``si_weight`` or ``damping`` is out of its range.
    """

    stays_near = "fine-tuning"

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        si_weight: float = 1.0,  # published code, split MNIST (permuted MNIST: 0.1)
        damping: float = 1e-3,  # published code, split MNIST (permuted MNIST: 0.1)
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),  # published code
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, tasks, optimizer, views, scheduler, lr_batch_size)
        if not si_weight >= 0:
            raise ValueError(f"si_weight is {si_weight}: it must be at least 0 (fine-tuning)")
        if not damping > 0:
            raise ValueError(f"damping is {damping}: it must be positive")
        self.si_weight = si_weight
        self.damping = damping
        self.penalty = QuadraticPenalty(self.held)  # Ω and θ*
        self.path = TensorList(torch.zeros_like(parameter) for parameter in self.held)  # ω
        self._gradients: list[Tensor] = []

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """Cross-entropy on the new task, and the penalty."""
        loss = self.cross_entropy(self.training_logits(self.view(batch, batch_idx)), batch.label, batch.task)
        if self.ended > 0:
            loss = with_penalty(self, loss, self.si_weight * self.penalty(self.held))
        self.log("train/loss", loss)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Notes the gradients of the cross-entropy: those of the loss less those of the penalty."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in self.held]
        if self.ended > 0:
            weight = self.si_weight * share_of_step(self.trainer)
            torch._foreach_sub_(gradients, self.penalty.gradient(self.held), alpha=weight)
        self._gradients = gradients

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Takes the step, and adds to ω what it did: -∂L/∂θ (θ_after - θ_before)."""
        held = self.held
        change = [parameter.detach().clone() for parameter in held]
        super().optimizer_step(*args, **options)
        with torch.no_grad():
            torch._foreach_sub_(change, held)  # θ_before - θ_after
            torch._foreach_mul_(change, self._gradients)
            if self.trainer.scaler is not None:  # it leaves out steps with infinite gradients: infinity times 0
                change = [torch.nan_to_num(term, 0.0, 0.0, 0.0) for term in change]
            torch._foreach_add_([*self.path], change)
        self._gradients = []

    def begin_task(self) -> None:
        """Takes the weights before the first task as the start of its path."""
        if self.task == 0:
            self.penalty.move([*self.path], self.held)  # ω is 0

    def end_task(self) -> None:
        """Adds ω of the task to Ω, and resets ω."""
        strength = []
        for parameter, ω, Ω, start in zip(self.held, self.path, self.penalty.weight, self.penalty.anchor, strict=True):
            new = ω / ((parameter - start).square() + self.damping)
            strength.append(torch.maximum(new, -Ω))
        self.penalty.move(strength, self.held)
        for ω in self.path:
            ω.zero_()

    @property
    def held(self) -> list[Tensor]:
        """The parameters that the penalty is on: all of encoder and head."""
        return held_parameters(self.encoder, self.head)
