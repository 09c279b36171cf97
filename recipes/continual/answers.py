"""The answers of a continual recipe: which classes an image may be of, with and without its task."""

from typing import Any, Self

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from datamodules import Batch, TaskBatch, Tasks, TaskSequence
from recipes.base.classifier import Classifier
from recipes.base.measures import accuracy
from recipes.continual.evaluation import masked
from recipes.nn import Encoder, MultiHead


class ContinualClassifier(Classifier):
    """A classifier of the classes of several tasks: the part of a continual recipe that predicts.

    ``batch_logits`` predicts the classes of a batch, for steps, predictions, reports and export. In the scenario
    ``task`` an image is of a class of its task. The task comes from the batch, or for other images from ``of_task``. If
    the task is unknown, the prediction is one of all classes that were learned, and ``predict`` says so.

    Args:
        tasks: number of classes of each task, and the scenario.
        Other arguments: see ``Classifier``.

    Attributes:
        begun: how many tasks have begun.
        asked_task: the task of images that come without one, from 1; null if it is unknown. ``of_task`` sets it.
    """

    own_labels: Tensor

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, tasks.num_classes, optimizer, scheduler, lr_batch_size)
        self.tasks = tasks
        self.head: MultiHead = MultiHead(self.feature_dim, tasks.head_sizes)  # type: ignore[assignment]
        self.begun = 0
        self.asked_task: int | None = None
        self._told_choice = False
        own = torch.zeros(len(tasks), tasks.num_classes, dtype=torch.bool)
        for task in range(len(tasks)):
            own[task, tasks.labels(task)] = True
        self.register_buffer("own_labels", own, persistent=False)  # [tasks, classes]
        self.test_task_accuracies = nn.ModuleList(accuracy(f"test/task_{task}") for task in range(1, len(tasks) + 1))

    def of_task(self, task: int | None) -> Self:
        """States the task of images that come without one: those of ``classify`` and of data that is no TaskSequence.

        Args:
            task: number of the task, from 1. If null, the task is unknown.

        Returns:
            The recipe itself: ``recipes.load(run).of_task(2).classify(images)``.

        Raises:
            ValueError: if the prediction does not depend on the task, or if that task was not trained.
        """
        if task is not None and self.tasks.scenario != "task":
            raise ValueError(
                f"task is {task}, but the predictions of this network do not depend on the task: it was trained in "
                f"the scenario {self.tasks.scenario}. Leave task out"
            )
        trained = self.begun or len(self.tasks)
        if task is not None and not (type(task) is int and 1 <= task <= trained):
            raise ValueError(
                f"task is {task}: it must be a whole number between 1 and {trained}, the number of tasks that were "
                "trained, or null for an unknown task"
            )
        self.asked_task = task
        return self

    # Which classes

    @property
    def seen_labels(self) -> Tensor:
        """The classes of the tasks that have begun, bool [classes]; all of them before the first has."""
        return self.own_labels[: self.begun or None].any(0)

    def allowed(self, task: Tensor) -> Tensor:
        """The classes that images of tasks [B] may be of, for loss and prediction, bool [B, classes].

        In the scenario ``task`` those of the task, in ``class`` those of all tasks that have begun, in ``domain`` all.
        """
        if self.tasks.scenario == "task":
            return self.own_labels[task]
        return self.seen_labels.expand(len(task), -1)

    # Logits

    def unmasked_logits(self, feature: Tensor) -> Tensor:
        """Maps features [B, F] to logits [B, classes] that rank all classes, whether or not their task has begun."""
        return super().logits(feature)

    def logits(self, feature: Tensor) -> Tensor:
        """Maps features [B, F] of images without a task to logits [B, classes].

        The logits are -inf for classes whose task has not begun, and for those of other tasks than ``of_task`` states.
        """
        of_task = None if self.asked_task is None else self.own_labels[self.asked_task - 1]
        return masked(self.unmasked_logits(feature), self.seen_labels if of_task is None else of_task)

    def batch_logits(self, batch: Batch | TaskBatch, feature: Tensor) -> Tensor:
        """Returns the logits [B, classes] that predict the classes of a batch; -inf for classes that are not allowed.

        Args:
            batch: the images, with or without their tasks.
            feature: their features [B, F].
        """
        if isinstance(batch, TaskBatch):
            return masked(self.unmasked_logits(feature), self.allowed(batch.task))
        return self.logits(feature)

    # Steps

    def validation_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:  # type: ignore[override]
        """Logs ``val/loss`` and ``val/accuracy`` of the tasks that have begun; returns the features [B, F]."""
        begun = torch.where(batch.task < self.begun, batch.label, -1)
        return super().validation_step(batch._replace(label=begun), batch_idx)  # type: ignore[arg-type]

    def test_step(self, batch: TaskBatch, batch_idx: int) -> Tensor:  # type: ignore[override]
        """Logs ``test/accuracy``, in all and by task, over the classes that the scenario allows.

        Returns:
            The features [B, F].
        """
        feature = super().test_step(batch, batch_idx)  # type: ignore[arg-type]
        logits = self.step_columns["logits"]
        for task, metric in enumerate(self.test_task_accuracies):
            self.measure(metric, logits, torch.where(batch.task == task, batch.label, -1))  # type: ignore[arg-type]
        return feature

    def setup(self, stage: str) -> None:
        """Refuses to predict with two statements about the tasks of the images."""
        super().setup(stage)
        self._told_choice = False
        if stage == "predict" and self.asked_task is not None and isinstance(self.datamodule, TaskSequence):
            raise ValueError(
                f"task is {self.asked_task}, but the data is a TaskSequence, which knows the task of each image: leave "
                "task out"
            )

    def on_predict_start(self) -> None:
        """Checks the task that was asked for once the checkpoint is loaded."""
        self.of_task(self.asked_task)

    def tell_choice(self) -> None:
        """Says how the class of an image without a task is chosen, in the scenario ``task``."""
        if self.tasks.scenario == "task" and self.asked_task is None:
            rank_zero_info(
                "the task of these images is unknown: each prediction is the class with the largest output among the "
                f"{int(self.seen_labels.sum())} classes of all tasks, which were not trained to be compared. Give the "
                "task, with --task or, in Python, with recipe.of_task"
            )

    def predict_step(self, batch: Batch | TaskBatch, batch_idx: int) -> dict[str, Tensor]:
        """Returns features [B, F], class probabilities or scores [B, classes] and indices [B].

        In the scenario ``task`` also the number of the ``task`` [B] that each prediction assumes, from 1; 0 if the task
        is unknown.
        """
        predicted: dict[str, Any] = super().predict_step(batch, batch_idx)  # type: ignore[arg-type]
        if self.tasks.scenario != "task":
            return predicted
        if isinstance(batch, TaskBatch):
            return {**predicted, "task": batch.task + 1}
        if not self._told_choice:
            self._told_choice = True
            self.tell_choice()
        return {**predicted, "task": torch.full_like(batch.index, self.asked_task or 0)}
