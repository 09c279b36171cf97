"""What all recipes share: an encoder, its optimiser and schedule, random keys, and gathering across devices."""

import math
import os
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from datamodules import Batch, TaskBatch
from recipes.augment import Key, Normalize, Views
from recipes.nn import Encoder, Replicated, evaluating, has_local_batch_norm, load_mismatch
from recipes.optim import RunSchedule, keep_lr_factors, parameter_groups


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
        made_from: content of the checkpoint without weights, for a recipe that was loaded.
        step_columns: rows [B, n] that the last validation or test step computed besides the features, such as
            ``logits``. Reports read them instead of computing them again, and clear them.

    Raises:
        ValueError: if ``lr_batch_size`` is not positive.
    """

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
        self.normalize = Normalize()
        self.views: Views | None = None
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.lr_batch_size = lr_batch_size
        self.image_shape: tuple[int, ...] | None = None
        self.made_from: dict[str, Any] = {}
        self.step_columns: dict[str, Tensor] = {}

    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W], uint8 or float in [0, 1], to features [B, F]."""
        return self.encoder(self.normalize(image))

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the features [B, F], which callbacks collect and measure."""
        return self(batch.image)

    def test_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the features [B, F], which callbacks collect and measure."""
        return self(batch.image)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns the features [B, F] with the indices [B] of their images."""
        return {"index": batch.index, "feature": self(batch.image)}

    def log(self, name: str, value: Any, *args: Any, **options: Any) -> None:
        """Logs as Lightning does; a number is not copied to the device, which the host would wait for, but made there.

        Args:
            name: of the measure.
            value: scalar tensor, number or metric.
            *args: of ``LightningModule.log``.
            **options: of ``LightningModule.log``.
        """
        if isinstance(value, int | float):
            value = torch.full((), value, device=self.device, dtype=torch.get_default_dtype())
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

        An encoder that was trained before keeps those that it was trained with, where they are known.
        """
        data = self.datamodule
        if data is None or not hasattr(data, "image_shape"):
            return
        channels, height, width = self.image_shape = data.image_shape
        self.normalize.set(*(_of_channels(self.encoder.normalization, channels) or (data.mean, data.std)))
        name = type(self.encoder).__name__
        if channels != self.encoder.in_channels:
            raise ValueError(
                f"the images have {channels} channels, {name} takes {self.encoder.in_channels}: "
                f"set in_channels of the encoder to {channels}"
            )
        try:
            with torch.no_grad(), evaluating(self.encoder):
                feature = self.encoder(torch.zeros(1, *data.image_shape).to(self.normalize.mean))  # its type
        except RuntimeError as error:
            raise ValueError(
                f"{name} cannot take images of {height}×{width} pixels; choose larger images or an encoder for small "
                f"ones ({str(error).splitlines()[0]})"
            ) from error
        if feature.shape != (1, self.feature_dim):
            raise ValueError(
                f"{name} gives {list(feature.shape)} for one image; an encoder gives [1, feature_dim], "
                f"here [1, {self.feature_dim}]"
            )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds the optimiser on all trainable parameters, and its schedule over the whole run."""
        optimizer = _created("optimizer", self.optimizer, self.parameter_groups())
        scale = 1.0 if self.lr_batch_size is None else self.global_batch_size / self.lr_batch_size
        for group in optimizer.param_groups:
            group["lr"] *= scale * group.get("lr_factor", 1.0)
        if self.scheduler is None:
            return optimizer
        scheduler = _created("scheduler", self.scheduler, optimizer)
        keep_lr_factors(scheduler)
        if not isinstance(scheduler, RunSchedule):
            every_epoch: Any = {"scheduler": scheduler, "interval": "epoch"}
            if isinstance(scheduler, ReduceLROnPlateau):
                every_epoch["monitor"] = scheduler.monitor
            return {"optimizer": optimizer, "lr_scheduler": every_epoch}
        total = self.total_steps
        if math.isinf(self.trainer.num_training_batches):  # with max_steps alone, nobody has asked for the loader yet
            self.trainer.fit_loop.setup_data()
        steps_per_epoch = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        scheduler.start(total, steps_per_epoch)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What the optimiser is made from: all trainable parameters, with and without weight decay.

        A group may have an ``lr_factor``, which its learning rate is multiplied by.
        """
        return parameter_groups(self)

    @property
    def total_steps(self) -> int:
        """Number of optimiser steps of the whole run, including those before a resume.

        Raises:
            ValueError: if neither ``max_epochs`` nor ``max_steps`` limits the run.
        """
        total = self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ValueError("the schedule needs the length of the run: set trainer.max_epochs or trainer.max_steps")
        return int(total)

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Buffers that are equal on all devices, so DDP need not broadcast them at every step."""
        same = tuple(f"{name}." for name, module in self.named_modules() if isinstance(module, Replicated))
        return [name for name, _ in self.named_buffers() if name.startswith(same)]

    @property
    def global_batch_size(self) -> int:
        """How many images make one optimiser step: the batch size of the DataModule × accumulated batches."""
        data = self.datamodule
        if data is None or not hasattr(data, "batch_size"):
            raise ValueError(
                "lr_batch_size scales the learning rate with the batch size of a DataModule, and this run has none: "
                "pass a DataModule to fit, or lr_batch_size=None"
            )
        return data.batch_size * self.trainer.accumulate_grad_batches

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Notes whose checkpoint it is, and the shape of the images."""
        checkpoint["recipe"] = type(self).__name__
        checkpoint["image_shape"] = self.image_shape and list(self.image_shape)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another recipe or of another network, before anything is loaded."""
        theirs, ours = checkpoint.get("recipe"), type(self).__name__
        if theirs is not None and theirs != ours:
            raise ValueError(f"the checkpoint is of the recipe {theirs}, this run is {ours}: use --model {theirs}")
        if problem := load_mismatch(self, checkpoint["state_dict"]):
            raise ValueError(f"the checkpoint does not fit this {ours}: {problem}")
        if self.image_shape is None and checkpoint.get("image_shape"):
            self.image_shape = tuple(checkpoint["image_shape"])
        if self._trainer is not None and isinstance(self._trainer.precision_plugin, DoublePrecision):
            self.double()  # Lightning does so after loading, which would round the weights to float32


def _created(name: str, create: Any, argument: Any) -> Any:
    """Calls an injected factory; torch's error for an argument out of its range becomes one that names the option."""
    try:
        return create(argument)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"the {name} cannot be created: {reason}. Change model.{name}") from error


def _of_channels(normalization: tuple[Any, Any] | None, channels: int) -> tuple[Any, Any] | None:
    """Returns mean and standard deviation for the given number of channels; grey images use the mean over RGB."""
    if normalization is None or len(normalization[0]) == channels:
        return normalization
    return tuple([sum(numbers) / len(numbers)] * channels for numbers in normalization)  # type: ignore[return-value]
