"""What all recipes share: an encoder, its optimiser and schedule, random keys, and gathering across devices."""

import copy
import os
from collections.abc import Callable
from numbers import Real
from typing import Any, ClassVar, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from datamodules import Batch, ImageDataModule, TaskBatch
from datamodules.loading.plain import PlainBatches, check_range
from datamodules.reading import Reading
from losses.precision import at_least_float32
from recipes.augment import Key, Normalize, Views
from recipes.base import position
from recipes.base.checks import (
    check_batch_size,
    check_checkpoint,
    check_encoder,
    check_indices,
    check_labels,
    check_loaders,
    check_precision,
    tell_reading,
    tell_small_images,
)
from recipes.base.finite import StopOnDivergence
from recipes.base.lent import AsLent, CleanRuns
from recipes.base.logged import StepLog
from recipes.base.measures import LabelledMetric, check_measures
from recipes.base.optimizers import optimizer_and_schedule
from recipes.base.pickling import named_defaults, with_defaults
from recipes.base.position import RunPosition
from recipes.base.resume import Resume
from recipes.base.strategies import check_strategy
from recipes.nn import Encoder, Replicated, has_local_batch_norm
from recipes.optim import parameter_groups


class AnyRecipe(LightningModule):
    """Common base of all recipes, from which the command chooses one.

    It has no arguments, because jsonargparse hands a base class's null on to a subclass whose own default is a class:
    a recipe would lose its schedule.
    """


class Recipe(AnyRecipe):
    """A way to train an encoder. A subclass adds what its method needs and writes ``training_step``.

    Args:
        encoder: network that maps images [B, C, H, W] to features [B, F].
        optimizer: optimiser of the trainable parameters. Norm layers and biases get no weight decay.
        scheduler: learning-rate schedule. Schedules of ``recipes.optim`` change the learning rate every step and know
            the length of the run; torch's schedules change it every epoch. If null, the learning rate is constant.
        lr_batch_size: global batch size for which the learning rate is stated, > 0. The run multiplies the learning
            rate by (its batch size / lr_batch_size) (linear scaling rule, Goyal et al., 2017, arXiv:1706.02677). If
            null, uses the learning rate as it is.

    Attributes:
        views: draws one random view of every image, see ``view``. Null, unless the method sets it.
        image_shape: channels, height and width of the images, once the data is known; it is kept in checkpoints.
        reading: how the images were read that the network was trained on, if it is known; it is kept in checkpoints.
            DataModules read images in the same way, unless their arguments say otherwise.
        trained: whether the weights were trained or are those of a checkpoint. Other data then changes neither the
            normalisation nor the names of the classes.
        made_from: content of the checkpoint without weights, for a recipe that was loaded.
        smallest_batch: number of images that a global training batch needs at least.
        remembers_images: whether something is kept for every image under its index.
        checks_images: whether images that are passed outside a run are checked. The host waits for a GPU to do so.
        step_columns: rows [B, n] that the last validation or test step computed besides the features, such as
            ``logits``. Reports read them instead of computing them again, and clear them.

    Raises:
        ValueError: if ``lr_batch_size`` is not positive.
    """

    smallest_batch: ClassVar[int] = 1
    remembers_images: ClassVar[bool] = False
    checks_images: bool = True
    _marks: ClassVar[tuple[str, ...]] = ("trained",)  # attributes that go with the weights, in any state_dict

    def __init__(
        self,
        encoder: Encoder,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if lr_batch_size is not None and lr_batch_size <= 0:
            raise ValueError(
                f"lr_batch_size is {lr_batch_size}: give a positive number, or null to use the lr as it is"
            )
        self.encoder = encoder.to(memory_format=torch.channels_last)  # convolutions are faster on CPUs and GPUs alike
        self.feature_dim = encoder.feature_dim
        self.normalize = encoder.input_normalize if isinstance(encoder, Encoder) else Normalize()
        if (stated := getattr(encoder, "normalization", None)) is not None:  # a subclass may state it itself
            self.normalize.set(*stated)
        self.views: Views | None = None
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.lr_batch_size = lr_batch_size
        self.image_shape: tuple[int, ...] | None = None
        self.reading: Reading = getattr(encoder, "reading", Reading())
        self.made_from: dict[str, Any] = {}
        self.trained = False
        self._has_stepped = False  # in this run
        self.step_columns: dict[str, Tensor] = {}
        self._position = RunPosition()
        self._step_log = StepLog()
        self._lent: list[AsLent] = []

    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W], uint8 or float in [0, 1], to features [B, F]."""
        self.check_range(image)
        return self.encoder(self.normalize(image))

    def check_range(self, image: Tensor) -> None:
        """Refuses float images outside [0, 1], and images of other channels than the encoder takes.

        In a run, the first batch of each loader was checked before.
        """
        state = getattr(self._trainer, "state", None)
        running = state is not None and state.status == TrainerStatus.RUNNING
        if self.checks_images and not running and not torch.compiler.is_compiling():
            check_range(image)
            channels = getattr(self.encoder, "in_channels", None)
            if image.ndim == 4 and channels not in (None, image.shape[1]):
                raise ValueError(f"the images have {image.shape[1]} channels, and the encoder takes {channels}")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Recipe":
        """Converts parameters and buffers; sums of metrics stay in float32 or wider, or they would end at 256."""
        super()._apply(fn, recurse)
        for module in self.modules():
            if isinstance(module, Metric):
                sums = [state for state in module.metric_state.values() if isinstance(state, Tensor)]
                if any(at_least_float32(state) is not state for state in sums):
                    module.set_dtype(torch.float32)
        return self

    def of_task(self, task: int | None) -> Self:
        """States the task of images that come without one. Only continual recipes have tasks.

        Args:
            task: number of the task, from 1. If null, the task is unknown.

        Returns:
            The recipe itself.

        Raises:
            ValueError: if a task is given, and the recipe has none.
        """
        if task is not None:
            name = type(self).__name__
            raise ValueError(f"task is {task}, but {name} has not learned a sequence of tasks: leave task out")
        return self

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the features [B, F], which callbacks collect and measure."""
        return self(batch.image)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the features [B, F], which callbacks collect and measure."""
        return self(batch.image)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns the features [B, F] with the indices [B] of their images."""
        return {"index": batch.index, "feature": self(batch.image)}

    def measure(self, metric: LabelledMetric, prediction: Tensor, label: Tensor) -> None:
        """Adds a batch to a metric that is logged over the labelled images of the epoch, if there are any.

        Args:
            metric: one of the recipe's own.
            prediction: a row for each image, as the metric takes it, such as logits [B, classes].
            label: int64 [B], -1 where unlabelled.
        """
        metric(prediction, label)
        self.log(metric.name, metric)

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Logs as Lightning does, except that values of a training step are the means over all devices.

        They are joined only on the steps whose values are read, see ``StepLog``; ``sync_dist`` is not needed. Every
        device has to log the same names. A number is not copied to the device, which the host would wait for, but made
        there.

        Args:
            name: name of the measure.
            value: scalar tensor, number or metric; or a function that computes a scalar tensor from tensors of the
                training step. It is called after the optimiser step, on the steps whose values are read.
            *args: of ``LightningModule.log``.
            **options: of ``LightningModule.log``.
        """
        if isinstance(value, Real):
            value = torch.full((), float(value), device=self.device, dtype=torch.get_default_dtype())
        of_step = self._current_fx_name == "training_step"
        if of_step and not isinstance(value, Metric) and not options.get("rank_zero_only"):
            self._step_log.add(self, name, value, *args, **options)
        else:
            super().log(name, value, *args, **options)

    def key(self, batch: Batch | TaskBatch, view: int = 0) -> Key:
        """The random key of one view of a batch: a function of (seed, epoch, image, view) and of nothing else."""
        return Key(self.seed, self.current_epoch, batch.index, view)

    def view(self, batch: Batch | TaskBatch, batch_idx: int, view: int = 0) -> Tensor:
        """Draws one random view of every image of a training batch; null ``views`` give the images as they are.

        An image that comes several times in an epoch gets a new view each time: data with few images or few labels
        repeats them.

        Args:
            batch: its images are [B, C, H, W], uint8 or float in [0, 1].
            batch_idx: number of the batch in the epoch.
            view: number of the view, for methods that use several views of an image.

        Returns:
            Images [B, C, H, W]: float in [0, 1] from ``views``, the tensor of the batch itself without.
        """
        if self.views is None:
            return batch.image
        return self.views(batch.image, self.key(batch, view).fold_in(batch_idx))

    @property
    def datamodule(self) -> Any:
        """The Trainer's DataModule; None if the Trainer has none, or if there is no Trainer."""
        return getattr(self._trainer, "datamodule", None)

    @property
    def seed(self) -> int:
        """That of the run."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0))

    def gather(self, x: Tensor) -> Tensor:
        """Joins x [B, ...] of all devices to [devices × B, ...], in rank order; the identity on one device.

        Differentiable: the gradients that all devices give to this device's rows are summed, so that DDP's average
        over devices is the gradient of the mean over the global batch.
        """
        if self.trainer.world_size == 1:
            return x
        everyones = self.all_gather(x, sync_grads=True)
        return everyones.flatten(0, 1)  # type: ignore[union-attr]

    def warn_of_local_batch_norm(self) -> None:
        """Warns if batch norm is not that of the global batch: for recipes whose paper asks for it."""
        if self.trainer.world_size > 1 and has_local_batch_norm(self):
            rank_zero_warn(
                f"{type(self).__name__}'s batch norm sees the images of one device alone, so that the result depends "
                "on the number of devices: give the Trainer plugins=CrossDeviceBatchNorm()"
            )

    def setup(self, stage: str) -> None:
        """Takes mean and standard deviation from the DataModule, and checks that encoder and images fit.

        Tells which measures do without labels, and refuses a callback that monitors one of them.

        An encoder that was trained before keeps those that it was trained with, where they are known. Those of data
        that it is only used with are replaced by the next.
        """
        self._has_stepped = False
        self._position = RunPosition()
        if stage == "fit":
            for parameter in self.frozen_parameters():
                parameter.requires_grad_(False)
            learns = any(parameter.requires_grad for parameter in self.encoder.parameters())
            if not learns and self.normalize.known is None:  # those of this data are not the encoder's
                self.normalize = copy.deepcopy(self.normalize)
        data = self.datamodule
        check_loaders(self, stage)
        if not isinstance(data, ImageDataModule):
            self._plain_batches = PlainBatches()
            self.on_before_batch_transfer = self._batch_of_plain_loader  # type: ignore[method-assign]
        elif "on_before_batch_transfer" in vars(self):
            del self.on_before_batch_transfer
        if stage == "fit":
            check_precision(self)
        if stage == "fit" and hasattr(data, "batch_size"):
            check_batch_size(self, data.batch_size)
        if data is None or not hasattr(data, "image_shape"):
            return
        check_measures(self, stage)
        self.image_shape = data.image_shape
        tell_reading(self, stage)
        if stage == "fit":
            tell_small_images(self, data.image_shape)
        known = self.normalize.known
        mean, std = known or (data.mean, data.std)
        self.normalize.set(mean, std, provisional=known is None)
        check_encoder(self, data.image_shape)

    def _batch_of_plain_loader(self, batch: Any, dataloader_idx: int) -> Any:
        """Makes a Batch of what a loader gives that is not of an ``ImageDataModule``, and checks it."""
        trainer = self.trainer
        made, is_first = self._plain_batches.make(batch, trainer, dataloader_idx)
        if not trainer.predicting and (is_first or made.label.device.type == "cpu"):
            check_labels(self, made.label)
        if trainer.training:
            check_indices(self, batch)
            if is_first:
                check_batch_size(self, len(made.image) * trainer.world_size)
        return made

    def configure_callbacks(self) -> list[Callback]:
        """Adds the callbacks by which runs begin clean, resumed runs obey their options and runs that diverge end.

        Refuses strategies that recipes cannot have: this is the first that a Trainer asks of a recipe.
        """
        check_strategy(type(self.trainer.strategy))
        given = self.trainer.callbacks  # type: ignore[attr-defined]
        return [
            kind()
            for kind in (CleanRuns, Resume, StopOnDivergence)
            if not any(isinstance(each, kind) for each in given)
        ]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds the optimiser on all trainable parameters, and its schedule over the whole run."""
        return optimizer_and_schedule(self)

    def lend(self, network: nn.Module) -> None:
        """Notes how a network is before this run changes it; see ``AsLent``."""
        self._lent.append(AsLent(network))

    def give_back(self) -> None:
        """Restores the networks that were lent for this run. It is called when a run ends, however it ends."""
        self._step_log = StepLog()
        while self._lent:
            self._lent.pop().restore()
        self._dtype = next((each.dtype for each in self.parameters()), self._dtype)

    def frozen_parameters(self) -> list[nn.Parameter]:
        """The parameters of the encoder that the method does not train: they require no gradient while it trains."""
        return []

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser is made from: all trainable parameters, with and without weight decay.

        A group may have an ``lr_factor``, which its learning rate is multiplied by.
        """
        return parameter_groups(self)

    @property
    def steps_done(self) -> int:
        """Number of optimiser steps before this one, out of ``total_steps``.

        This is ``global_step``, unless the run was resumed with another batch size: then as many steps of this run as
        have the images trained on.
        """
        return self.global_step + self._position.ahead

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps of the whole run, including those before a resume.

        Raises:
            ValueError: if neither ``max_epochs`` nor ``max_steps`` limits the run.
        """
        return self._position.total or position.steps_of_run(self.trainer)

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimiser steps in an epoch: in the first, if the epochs of the run differ."""
        return position.steps_between(self.trainer, 0, 1)

    @property
    def steps_left(self) -> float:
        """Number of optimiser steps from now to the end of the run; infinite for a run without end."""
        return position.steps_left(self.trainer)

    def steps_until(self, epoch: int) -> int:
        """Computes the number of optimiser steps from now to the start of an epoch."""
        return position.steps_until(self.trainer, epoch)

    def epochs_of_schedule(self, epochs: int) -> int:
        """How many epochs of the schedule are over, given those of the run."""
        return epochs

    @property
    def global_batch_size(self) -> int:
        """How many images make one optimiser step: the global batch size of the data × accumulated batches."""
        return position.global_batch_size(self.trainer)

    @property
    def run_position(self) -> dict[str, Any]:
        """The position in the run, for a checkpoint: steps done, and the unit that they are counted in."""
        return position.position_to_save(self)

    def resume_at(self, saved: dict[str, Any], had_schedule: bool) -> None:
        """Moves a resumed run to the share of its length that is done; see ``RunPosition.resume``."""
        self._position.resume(self, saved, had_schedule)

    def _placed(self, ratio: float) -> tuple[int, int]:
        """Returns the steps done and the steps in all, given the steps of this run that one earlier step is worth."""
        return self._position.place(self, ratio)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Buffers that are equal on all devices, so DDP need not broadcast them at every step."""
        same = tuple(f"{name}." for name, module in self.named_modules() if isinstance(module, Replicated))
        return [name for name, _ in self.named_buffers() if name.startswith(same)]

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Takes a step. After the first one the encoder counts as trained, on images normalised as they are now."""
        super().optimizer_step(*args, **options)
        self._step_log.settle(self)
        if not self._has_stepped:
            self._has_stepped = self.trained = True
            self.normalize.keep()
            self.reading = getattr(self.datamodule, "reading", self.reading).keeping(self.reading)
            if any(parameter.requires_grad for parameter in self.encoder.parameters()):
                self.encoder.pretrained = True
                self.encoder.reading = self.reading

    def on_train_batch_end(self, *args: Any) -> None:
        """Logs the values of the step if they are read because the run ends with it."""
        self._step_log.settle(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes whose checkpoint it is, the shape of the images, and how they were read."""
        checkpoint["recipe"] = type(self).__name__
        checkpoint["image_shape"] = self.image_shape and list(self.image_shape)
        reading = self.reading if self.trained else getattr(self.datamodule, "reading", self.reading)
        checkpoint["reading"] = reading._asdict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another recipe or of another network, before anything is loaded."""
        check_checkpoint(self, checkpoint)
        self.trained = True
        self.reading = Reading.of_checkpoint(checkpoint)
        if self._trainer is not None:
            tell_reading(self, str(self._trainer.state.fn.value) if self._trainer.state.fn else None)
        if self.image_shape is None and checkpoint.get("image_shape"):
            self.image_shape = tuple(checkpoint["image_shape"])
        if self._trainer is not None and isinstance(self._trainer.precision_plugin, DoublePrecision):
            self.double()  # Lightning does so after loading, which would round the weights to float32

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # in the metadata, where modules have their versions: names of entries stay those of tensors
        destination._metadata[prefix[:-1]]["marks"] = {name: getattr(self, name) for name in self._marks}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, local_metadata: Any, *rest: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        marks = local_metadata.get("marks", {})
        for name in self._marks:
            setattr(self, name, marks.get(name) or getattr(self, name))
        if self.trained:
            self.encoder.pretrained = True

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy holds: default optimisers and schedules by the names of their arguments."""
        state = super().__getstate__()
        state["_metric_attributes"] = None  # Lightning's names of metrics, by their address
        return named_defaults(type(self), state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores the recipe of a pickle."""
        super().__setstate__(with_defaults(state))
