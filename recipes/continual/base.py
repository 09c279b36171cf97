"""Base of the recipes that learn one task after the other: when tasks begin and end, and which parts learn."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import Scenario, Tasks, TaskSequence
from losses.precision import at_least_float32
from recipes.augment import Views
from recipes.base import position
from recipes.continual import progress
from recipes.continual.added_classes import AddedClasses
from recipes.continual.answers import ContinualClassifier
from recipes.continual.evaluation import fill_row, masked
from recipes.continual.first_task import start_from_classifier
from recipes.continual.task_start import TaskStart
from recipes.errors import CheckpointMismatch
from recipes.evaluation.continual import AccuracyMatrix, summary, view_of
from recipes.nn import Encoder, FrozenStages, evaluating
from recipes.nn.frozen_stages import drop_gradients, zero_of


class ContinualRecipe(ContinualClassifier):
    """A classifier that learns a sequence of tasks within one ``fit``.

    A subclass writes ``training_step`` and the hooks that it needs:

    =================  ================================================  =============================================
    hook               called                                            written by
    =================  ================================================  =============================================
    ``begin_task``     before a task's first batch                       LwF, ICaRL, SI, Joint
    ``end_task``       after a task's last epoch, without gradient       EWC, SI, Rehearsal, DERpp, ICaRL
    ``frozen_stages``  in every training step and change of mode         FineTuning, FeatureExtraction
    =================  ================================================  =============================================

    Logits always cover all classes, [B, classes]. ``training_logits`` computes the logits of images in a training step,
    and ``unmasked_logits`` those of features. ``batch_logits``, ``logits`` and ``classify`` set classes to -inf that an
    image cannot be of; the prediction is the class with the largest logit (see ``ContinualClassifier``).

    In the notation of Li & Hoiem (2016, arXiv:1606.09282), θ_s is the encoder, which all tasks share. The head has a
    linear layer for each task (in the scenario ``domain`` one for all tasks), all created at the start: θ_n for the
    current task and θ_o for the earlier tasks.

    When a task begins, optimiser and schedule are reset; the schedule lasts as long as the task. Frozen parameters get
    no gradient and are skipped by the optimiser. ``requires_grad`` does not change, because DDP reads it only once.
    After each task, the images of all tasks are classified (``accuracy_matrix``): the test images or, if there are
    none, the validation images. A test measures the present network (``test/accuracy`` and ``test/task_1`` onwards). It
    logs the measures of the matrix only if no task is in progress. The run ends with the last task.

    Args:
        tasks: number of classes of each task, and the scenario. The ``recipes`` command takes them from the data.
        views: augmentation that draws one random view of every image. If null, uses the images as they are.
        scheduler: learning-rate schedule of each task, as for ``Recipe``; its length is that of the task.
        Other arguments: see ``Classifier``.

    Attributes:
        scenarios: those that the method is for.
        ended: how many tasks are over; ``begun`` is how many have begun.
        first_without_images: whether the first task is a classifier that was trained elsewhere (``AddedClasses``).
        measuring_seconds: how long this process has filled the accuracy matrix.
        accuracy_matrix: on the images of each task, before training and after each task.

    Raises:
        ValueError: if the method is not for the scenario; at the start of a run, if its data is no ``TaskSequence``
            or one of other tasks, or if the recipe has trained before and the run does not resume a checkpoint.
    """

    scenarios: ClassVar[tuple[Scenario, ...]] = ("task", "class", "domain")
    reads_old_heads: ClassVar[bool] = False  # whether the loss of the scenario task reads the heads of old tasks
    _marks = (*ContinualClassifier._marks, "begun", "ended", "first_without_images")
    adds_classes: ClassVar[str | None] = None  # what it lacks as it adds classes to a classifier; null: it cannot
    stays_near: ClassVar[str | None] = None  # the baseline that a method without old images stays near in ``class``

    def __init__(
        self,
        encoder: Encoder,
        tasks: Tasks | None,
        optimizer: OptimizerCallable,
        views: Views | None = None,
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        name = type(self).__name__
        if tasks is None:
            raise ValueError(f"{name} learns a sequence of tasks: give --data TaskSequence, with the data as its base")
        if tasks.scenario not in self.scenarios:
            raise ValueError(
                f"{name} is for the scenario{'s' * (len(self.scenarios) > 1)} {' and '.join(self.scenarios)}, and the "
                f"scenario of the data is {tasks.scenario}: choose another scenario or another recipe"
            )
        super().__init__(encoder, tasks, optimizer, scheduler, lr_batch_size)
        self.views = views
        self.task_start = TaskStart()  # a method with other starts sets its own
        self.ended = 0
        self.first_without_images = False
        self.measuring_seconds = 0.0
        # each device has seen all images when it counts
        self.accuracy_matrix = AccuracyMatrix(len(tasks), sync_on_compute=False)
        self.frozen = FrozenStages(self.encoder)
        self._resumes = False  # whether this fit has a checkpoint
        self._told: str | None = None  # the tasks that are not trained

    # What a subclass may write

    def begin_task(self) -> None:
        """Called before the first batch of each task, and before its optimiser is made."""

    def end_task(self) -> None:
        """Called after the last epoch of each task, in eval mode and without gradient, on every device."""

    @property
    def frozen_stages(self) -> int:
        """How many stages of the encoder, from the first, do not learn now."""
        return len(self.frozen) if self.warming_up else 0

    @property
    def expectation(self) -> str | None:
        """A note for the report, if the method is not expected to solve the scenario of the data."""
        if self.stays_near is None or self.tasks.scenario != "class":
            return None
        return (
            f"{type(self).__name__} stays near {self.stays_near} in the scenario class: without old images, nothing "
            "teaches it to tell the tasks apart. Read the accuracies of the scenario task, or keep images (Rehearsal, "
            "ICaRL)."
        )

    # What it can use

    @property
    def task(self) -> int:
        """The number of the task that is learned now, from 0; before training of the first, after it of the last."""
        return max(self.begun - 1, int(self.first_without_images))

    @property
    def warming_up(self) -> bool:
        """Whether only the head of a new task learns, in its first epochs (Li & Hoiem, 2016, Section 3)."""
        if self.task_start.warmup_epochs == 0 or self.task == 0 or not isinstance(self.datamodule, TaskSequence):
            return False
        epoch = self.data.epochs.epoch_in_task(self.current_epoch)
        return epoch < self.task_start.warmup_of(self.data.epochs_per_task[self.task])

    @property
    def data(self) -> TaskSequence:
        """The sequence of tasks."""
        return self.datamodule

    def training_logits(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W] to unmasked logits [B, classes], with no gradient in stages that do not learn."""
        with self.frozen.detached(self.frozen_stages):
            feature = self(image)
        logits = self.head(feature)
        if frozen := self._frozen_parameters():
            logits = logits + zero_of(frozen)
        return at_least_float32(logits)

    def cross_entropy(self, logits: Tensor, label: Tensor, task: Tensor) -> Tensor:
        """Cross-entropy over the classes that are allowed, the mean over the images of all devices.

        Args:
            logits: of this device's images, [B, classes]; devices may have more and fewer images.
            label: int64 [B].
            task: int64 [B].
        """
        total = F.cross_entropy(masked(logits, self.allowed(task)), label, reduction="sum")
        images = self.gather(total.new_full((1,), len(label)))
        return total / images.mean()  # DDP takes the mean over the devices

    @property
    def bytes_in_data(self) -> int:
        """Bytes of the images of earlier tasks that the method goes on reading from the data; 0 for most methods."""
        return 0

    def share(self, x: Tensor) -> Tensor:
        """This device's part of a tensor [N, ...] that is the same on every device."""
        return x.tensor_split(self.trainer.world_size)[self.trainer.global_rank]

    def total(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all devices, the same on each of them."""
        summed: Tensor = self.trainer.strategy.reduce(x, reduce_op="sum")
        return summed

    # When tasks begin and end

    def setup(self, stage: str) -> None:
        """Checks that the data is the sequence of tasks that the recipe was made for."""
        data = self.datamodule
        if stage == "predict" and not isinstance(data, TaskSequence):
            super().setup(stage)
            return
        if not isinstance(data, TaskSequence):
            raise ValueError(
                f"the data is {type(data).__name__}: {type(self).__name__} requires a sequence of tasks. Give a "
                "TaskSequence with the data as its base"
            )
        if data.tasks != self.tasks:
            raise ValueError(
                f"the data has {data.tasks}, but the recipe was created for {self.tasks}: create the recipe with "
                "tasks=data.tasks"
            )
        super().setup(stage)
        if stage == "fit":
            self._resumes = False
            if isinstance(data, AddedClasses) and self.begun == 0:
                start_from_classifier(self, data)
            self.task_start.tell_cuts(data.epochs_per_task[1:])

    def on_fit_start(self) -> None:
        """Refuses to start a sequence with what is left of another run.

        Raises:
            ValueError: if the recipe or the Trainer has trained before, and the run does not resume a checkpoint.
        """
        remedy = "or resume that run: fit with ckpt_path"
        if self._resumes:
            return
        if self.begun > 0:
            raise ValueError(
                f"this {type(self).__name__} has begun {self.begun} of its {len(self.tasks)} tasks in an earlier run, "
                f"whose weights, accuracies and memory it still has: create a new recipe to learn the sequence again, "
                f"{remedy}"
            )
        if self.trainer.current_epoch > 0:
            raise ValueError(
                f"the Trainer has trained for {self.trainer.current_epoch} epochs before, and a sequence starts with "
                f"epoch 1: create a new Trainer, {remedy}"
            )

    def on_train_start(self) -> None:
        """Measures before training; ends a task whose run was killed between its last step and its end."""
        if self.begun == 0:
            self.begun = self.ended = int(self.first_without_images)
            self._measure(row=self.begun)
        elif self.ended < self.begun and sum(self.data.epochs_per_task[: self.begun]) <= self.current_epoch:
            self._end()
        self.on_train_epoch_start()  # Lightning skips it if a run resumes after the last batch of an epoch
        if (line := progress.planned(self)) is not None:
            rank_zero_info(line)

    def on_train_epoch_start(self) -> None:
        """Begins the task of this epoch, where it is a new one."""
        if self.begun <= self.data.epochs.task_of(self.current_epoch) and self.current_epoch < self.data.epochs.total:
            self.begun += 1
            with torch.no_grad():
                self.begin_task()
            if self.task > 0:
                self.trainer.strategy.setup_optimizers(self.trainer)
        self.train()

    def on_train_epoch_end(self) -> None:
        """Ends the task whose last epoch this was."""
        if self.data.epochs.is_last_of_task(self.current_epoch) and self.ended < self.begun:
            self._end()
            for name, value in self._measures().items():
                self.log(f"test/{name}", value)

    def on_train_end(self) -> None:
        """States which tasks are not trained."""
        self._told = None
        self._tell_untrained()

    def _tell_untrained(self) -> None:
        line = progress.untrained(self.begun, self.ended, len(self.tasks))
        if line is not None and line != self._told:
            rank_zero_info(line)
        self._told = line

    def _end(self) -> None:
        with torch.no_grad(), evaluating(self), self.trainer.precision_plugin.forward_context():
            self.end_task()
        self.ended = self.begun
        self._measure(row=self.ended)
        if self.ended == len(self.tasks):
            self.trainer.should_stop = True  # max_steps may leave time for more

    def _measure(self, row: int) -> None:
        """Fills a row of the accuracy matrix."""
        self.measuring_seconds += fill_row(self, row)

    @property
    def total_steps(self) -> int:
        """How many optimiser steps the task has that is learned now."""
        return position.steps_between(self.trainer, *self._epochs_of_task)

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimiser steps in an epoch of the task that is learned now."""
        first, _ = self._epochs_of_task
        return position.steps_between(self.trainer, first, first + 1)

    @property
    def steps_left(self) -> float:
        """Number of optimiser steps from now to the end of the task."""
        _, stop = self._epochs_of_task
        return self.steps_until(stop)

    @property
    def _epochs_of_task(self) -> tuple[int, int]:
        """The first epoch of the run that belongs to the task that is learned now, and the one after its last."""
        before = sum(self.data.epochs_per_task[: self.task])
        return before, before + self.data.epochs_per_task[self.task]

    def epochs_of_schedule(self, epochs: int) -> int:
        """How many epochs of the task are over, given those of the run."""
        return epochs - self._epochs_of_task[0]

    def _placed(self, ratio: float) -> tuple[int, int]:
        """Returns the steps done and the steps in all of the task: its schedule ends with it."""
        return self.total_steps - int(self.steps_left), self.total_steps

    def parameter_groups(self) -> list[dict[str, Any]]:
        """All trainable parameters, which from the second task on may learn more slowly."""
        factor = self.task_start.later_lr_factor if self.task > 0 else 1.0
        return [{**group, "lr_factor": factor} for group in super().parameter_groups()]

    # Which parts learn

    @property
    def learning_heads(self) -> Sequence[int]:
        """The numbers of the linear layers that learn now."""
        if self.tasks.scenario == "domain":
            return [0]
        old = self.reads_old_heads or self.tasks.scenario == "class"
        return range(self.begun) if old and not self.warming_up else [self.task]

    def train(self, mode: bool = True) -> "ContinualRecipe":
        """Keeps the stages that are frozen in eval mode."""
        super().train(mode)
        self.frozen.evaluate(range(self.frozen_stages))
        return self

    def on_after_backward(self) -> None:
        """Drops the gradients of what is frozen, so that no weight decay and no momentum moves it either."""
        learning = self.learning_heads
        others = [head for number, head in enumerate(self.head.heads) if number not in learning]
        drop_gradients([*self._frozen_parameters(), *(parameter for head in others for parameter in head.parameters())])

    def _frozen_parameters(self) -> list[nn.Parameter]:
        return self.frozen.parameters(range(self.frozen_stages))

    # What is measured

    def on_test_epoch_end(self) -> None:
        """Logs the measures of the accuracy matrix, if it has those of the present network."""
        self._tell_untrained()
        if self.begun > self.ended:
            return
        for name, value in self._measures().items():
            self.log(f"test/{name}", value)

    def _measures(self) -> dict[str, float]:
        """The measures of the tasks that are over, in the scenario's view; none without images to measure on."""
        if not self.accuracy_matrix.update_called:
            return {}
        scenario = self.tasks.scenario
        return summary(self.accuracy_matrix.of_scenario(scenario), view_of(scenario), scenario)

    # What a checkpoint keeps

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes how many tasks have begun and ended."""
        super().on_save_checkpoint(checkpoint)
        epochs = list(getattr(self.datamodule, "epochs_per_task", ()))
        checkpoint["tasks"] = {"begun": self.begun, "ended": self.ended, "epochs": epochs}
        checkpoint["tasks"]["first_without_images"] = self.first_without_images

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resumes at the task of the checkpoint.

        Raises:
            CheckpointMismatch: if the run would resume at another task, as the data has other numbers of epochs.
        """
        super().on_load_checkpoint(checkpoint)
        if self.datamodule is not None and self.trainer.state.fn == TrainerFn.FITTING:
            _check_epochs(checkpoint, list(self.data.epochs_per_task))
            self._resumes = True
        self.begun, self.ended = checkpoint["tasks"]["begun"], checkpoint["tasks"]["ended"]
        self.first_without_images = checkpoint["tasks"].get("first_without_images", False)


def _check_epochs(checkpoint: dict[str, Any], ours: list[int]) -> None:
    """Checks that tasks that are over, and the one in progress, keep their place in a resumed run."""
    begun, ended, theirs = (checkpoint["tasks"].get(name) for name in ("begun", "ended", "epochs"))
    if theirs == ours:
        return
    if theirs and theirs[:ended] != ours[:ended]:
        raise CheckpointMismatch(
            f"epochs_per_task is {ours}, and the tasks that are over had {theirs[:ended]} epochs: keep these"
        )
    epoch = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]  # the one to resume at
    done = epoch - sum(ours[:ended])  # in the task in progress
    if begun > ended and not 0 <= done < ours[ended] or begun == ended < len(ours) and done != 0:
        remedy = "keep the numbers of the checkpoint"
        if begun > ended and done >= 0:
            remedy += f", or give task {begun} at least {done + 1} epochs"
        raise CheckpointMismatch(
            f"epochs_per_task is {ours}, and the run resumes at its epoch {epoch + 1}, in task {ended + 1}, which has "
            f"no such epoch under these numbers: {remedy}"
        )
