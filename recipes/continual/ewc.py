import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from datamodules import TaskBatch, Tasks
from recipes.augment import Key, Views, uniform
from recipes.continual.base import ContinualRecipe
from recipes.continual.penalty import held_parameters, with_penalty
from recipes.nn import Encoder, QuadraticPenalty, diagonal_fisher


class EWC(ContinualRecipe):
    """Continual learning: penalises changes of important weights (Kirkpatrick et al., 2017, arXiv:1612.00796).

    After each task A, the Fisher information F of its images measures how much each weight θᵢ influences the network's
    predictions. In later tasks, a quadratic penalty of that strength keeps the weight near its value θ*_A,i at the end
    of task A (Equation 3):

        L(θ) = L_B(θ) + Σ_A Σᵢ λ/2 F_A,i (θᵢ - θ*_A,i)²

    The sum over tasks is stored as one equal quadratic, so memory and time do not grow with the number of tasks. The
    online form (Schwarz et al., 2018, arXiv:1805.06370) uses the last θ* only, with F ← γ F + F_A.

    F is exact: the mean over images of the expectation over labels, in eval mode and without augmentation (see
    ``recipes.nn.diagonal_fisher``). The scale of λ depends on this definition. If F is a sum over N images, the same
    penalty has λ/N. If gradients are averaged over a batch before they are squared, λ is larger by orders of magnitude.
    ``train/penalty_ratio`` is the penalty over the cross-entropy. If it stays far below 1, the penalty has no effect.

    If the task is known at test time, EWC forgets little. In the scenario ``class`` its accuracy stays near that of
    fine-tuning, as in the literature (van de Ven & Tolias, 2019, arXiv:1904.07734, Table 4), because a penalty on
    weights does not train the network to distinguish the tasks.

    Args:
        ewc_weight: weight λ of the penalty, >= 0. With 0, the method is fine-tuning.
        online: whether to use online EWC, which keeps one Fisher information for all past tasks.
        gamma: share γ of the past Fisher information that online EWC keeps when a task ends, in [0, 1].
        fisher_images: number of images of a task that the Fisher information F is computed from, > 0. The seed chooses
            them; smaller tasks use all their images.
        Other arguments: see ``ContinualRecipe``.

    Raises:
        ValueError: if a number is out of its range, or there is a ``gamma`` without ``online``.
    """

    stays_near = "fine-tuning"
    adds_classes = (
        "no Fisher information of the old classes, which follows from their images: no penalty holds the weights until "
        "the first new task has ended. LwF keeps the old classes without their images"
    )

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        ewc_weight: float = 1000.0,  # chosen in a short trial on split Fashion-MNIST: docs/results.md
        online: bool = False,
        gamma: float = 1.0,
        fisher_images: int = 500,  # van de Ven, 2025, arXiv:2502.11756: about as good as all
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=1e-3),  # as in van de Ven & Tolias, 2019
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, tasks, optimizer, views, scheduler, lr_batch_size)
        if not ewc_weight >= 0:
            raise ValueError(f"ewc_weight is {ewc_weight}: it must be at least 0 (fine-tuning)")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma is {gamma}: it must be in [0, 1]")
        if gamma != 1 and not online:
            raise ValueError(f"gamma is {gamma}, and is for online EWC: set online to true, or leave gamma out")
        if fisher_images < 1:
            raise ValueError(f"fisher_images is {fisher_images}: it must be at least 1")
        self.ewc_weight = ewc_weight
        self.online = online
        self.gamma = gamma
        self.fisher_images = fisher_images
        self.penalty = QuadraticPenalty(self.held)

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """Cross-entropy on the new task, and the penalty (Equation 3)."""
        loss = self.cross_entropy(self.training_logits(self.view(batch, batch_idx)), batch.label, batch.task)
        if self.ended > 0:
            loss = with_penalty(self, loss, self.ewc_weight / 2 * self.penalty(self.held))
        self.log("train/loss", loss)
        return loss

    def end_task(self) -> None:
        """Computes F of the task, over the classes that its images could be of, and holds the weights by it."""
        classes = self.allowed(torch.tensor([self.task], device=self.device))[0]
        *of_encoder, weight, bias = self._fisher(nn.Sequential(self.encoder, self.head.joined()), classes)
        fisher = [*of_encoder, *self.head.apart(weight, bias)]
        if self.online:
            self.penalty.move(fisher, self.held, decay=self.gamma)
        else:
            self.penalty.add(fisher, self.held)

    @property
    def held(self) -> list[Tensor]:
        """The parameters that the penalty is on: all of encoder and head. No head is held before it is trained."""
        return held_parameters(self.encoder, self.head)

    def _fisher(self, network: nn.Module, classes: Tensor) -> list[Tensor]:
        """F of the parameters of a network, each device's from its share of the images, and then the mean of all."""
        rows = self._fisher_rows()
        own = self.share(rows)  # without an image, this device has any one, which does not count
        images = self.normalize(self.data.splits.train.images(own if len(own) else rows[:1]).to(self.device))
        fisher = diagonal_fisher(network, images, classes)
        return [self.total(len(own) / len(rows) * of_share) for of_share in fisher]

    def _fisher_rows(self) -> Tensor:
        """Which images of the task F is computed from: a function of seed and task, the same on every device."""
        rows = self.data.positions(self.data.splits.train, self.task)
        order = uniform(Key(self.seed, self.task, rows), 1)[:, 0]
        return rows[order.argsort(stable=True)[: self.fisher_images]]
