import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from datamodules import TaskBatch, Tasks
from losses import SoftTarget
from recipes.augment import Views
from recipes.continual.base import ContinualRecipe
from recipes.continual.task_start import TaskStart
from recipes.nn import Encoder, Snapshot


class LwF(ContinualRecipe):
    """Continual learning: keeps the old network's predictions for new images (Li & Hoiem, 2016, arXiv:1606.09282).

    No image of an old task is kept. When a task begins, the network is copied. The copy, in eval mode, predicts the old
    tasks' classes for the views of the new images. The network is trained to keep these predictions (Figure 3):

        λ_o Σ L_old(Y_o, Ŷ_o) + L_new(Y_n, Ŷ_n), with L_old = -Σ softmax(y_o/T) log softmax(ŷ_o/T),

    where the first sum is over the old tasks, each with a softmax of its own, and there is no factor T². In the
    scenario ``class`` all old classes share one softmax, and L_new has one softmax over all classes so far. In the
    scenario ``domain`` both losses use the single head.

    If the task is known at test time, LwF forgets little. In the scenario ``class`` its accuracy stays near that of
    fine-tuning, as in the literature, because it never compares images of two tasks (van de Ven & Tolias, 2019,
    arXiv:1904.07734, Table 4: 24 % on split MNIST, against 20 % for fine-tuning).

    Args:
        old_weight: weight λ_o of the old tasks' loss, >= 0 (Section 3: 1 for most experiments). With 0, the method is
            fine-tuning.
        temperature: softmax temperature T, > 0 (Section 3: 2).
        warmup_epochs: number of first epochs of each later task in which only the new head learns, >= 0 (Li & Hoiem,
            2016, Section 3: until convergence). A task that is not longer has a warm-up of a tenth of its epochs.
        later_lr_factor: factor on the learning rate in all tasks after the first, > 0 (Li & Hoiem, 2016, Section 3: 0.1
            to 0.02).
        Other arguments: see ``ContinualRecipe``.

    Raises:
        ValueError: if a number is out of its range.
    """

    reads_old_heads = True
    adds_classes = ""
    stays_near = "the floor"

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        old_weight: float = 1.0,
        temperature: float = 2.0,
        warmup_epochs: int = 1,
        later_lr_factor: float = 1.0,
        views: Views | None = None,
        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(
            p, lr=0.01, momentum=0.9, weight_decay=5e-4
        ),  # Figure 3: weight decay 0.0005; Section 3: a small learning rate, to keep the old weights
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, tasks, optimizer, views, scheduler, lr_batch_size)
        if not old_weight >= 0:
            raise ValueError(f"old_weight is {old_weight}: it must be at least 0")
        self.old_weight = old_weight
        self.task_start = TaskStart(warmup_epochs, later_lr_factor)
        self.soft_target = SoftTarget(temperature, scale_t2=False)
        self.old_network = Snapshot(self.encoder, self.head)

    def begin_task(self) -> None:
        """Copies the network: θ_s and θ_o."""
        self.old_network.take()

    def training_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:
        """Computes the cross-entropy on the new task, and on old tasks with the old network's predictions."""
        image = self.view(batch, batch_idx)
        logits = self.training_logits(image)
        loss = self.cross_entropy(logits, batch.label, batch.task)
        if self.task > 0 and self.old_weight > 0 and not self.warming_up:
            old = self.old_network(self.normalize(image))  # Y_o
            each = [self.soft_target(logits[:, labels], old[:, labels]) for labels in self.old_labels]
            self.log("train/old_loss", sum(each))
            loss = loss + self.old_weight * sum(each)
        self.log("train/loss", loss)
        return loss

    @property
    def old_labels(self) -> list[slice]:
        """The classes of each softmax of the old network."""
        if self.tasks.scenario == "domain":
            return [slice(0, self.tasks.num_classes)]
        labels = [self.tasks.labels(task) for task in range(self.task)]
        if self.tasks.scenario == "class":
            return [slice(0, labels[-1].stop)]
        return [slice(each.start, each.stop) for each in labels]
