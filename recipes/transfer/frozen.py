"""Frozen encoders: no gradient, no moving statistics, and every image passes once where that is enough."""

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from datamodules import ImageDataModule, ImagesInMemory
from recipes.base.classifier import Classifier
from recipes.base.recipe import Recipe
from recipes.evaluation.features import extract
from recipes.nn import Encoder, FrozenStages, evaluating, stage_features, stages

_SIZES = (32, 64, 128, 224)  # of images, of which every encoder takes one, or says in image_size what it takes


def cache_features(recipe: Recipe) -> None:
    """Passes all training and validation images through a recipe once; the loaders then give its features.

    To be called at the start of ``configure_optimizers``, on every device: the weights of a checkpoint are there, and
    the loaders are not made yet. Does nothing under ``fast_dev_run``, nor where the Trainer has no DataModule of ours.

    Args:
        recipe: maps images [B, C, H, W] to features [B, F], the same all through the training.
    """
    trainer, data = recipe.trainer, recipe.datamodule
    if not isinstance(data, ImageDataModule) or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    dtype = next(recipe.parameters()).dtype
    instead = {}
    for name in ("train", "val"):
        images = getattr(data.splits, name)
        if images is not None:
            features = extract({name: recipe}, data.in_order(images), trainer, dtype)[name]
            instead[name] = ImagesInMemory(features.feature.cpu(), images.label)
    data.hand_out(instead["train"], instead.get("val"))


def warn_of_random_weights(encoder: Encoder) -> None:
    """Warns if the encoder has random weights. Nothing is known about the weights of a wrapped network."""
    if not encoder.pretrained and type(encoder) is not Encoder:
        rank_zero_warn(
            "the encoder has random weights, so there is nothing to transfer: set encoder.weights, for example to a "
            "run directory"
        )


def stage_dim(encoder: Encoder, stage: int) -> int:
    """The number of features that a stage of an encoder gives, as ``stage_features`` pools them.

    Raises:
        ValueError: if the encoder has no such stage, or takes images of none of the usual sizes.
    """
    found = stages(encoder)
    if not 0 <= stage < len(found):
        names = ", ".join(f"{number} ({name})" for number, (name, _) in enumerate(found))
        raise ValueError(f"stage is {stage}: the stages of this {type(encoder).__name__} are {names}")
    size = encoder.made_with.get("image_size")
    parameter = next(encoder.parameters())
    for side in (size,) if size else _SIZES:
        image = torch.zeros(1, encoder.in_channels, side, side, dtype=parameter.dtype, device=parameter.device)
        try:
            with torch.no_grad(), evaluating(encoder):
                return stage_features(encoder, image)[stage].shape[1]
        except (RuntimeError, ValueError, AssertionError) as error:  # too small, or made for another size
            reason = error
    raise ValueError(
        f"this {type(encoder).__name__} takes no images of {side} × {side} pixels: set its image_size ({reason})"
    ) from reason


class FrozenClassifier(Classifier):
    """A classifier whose encoder is frozen and whose head reads the features of one of its stages.

    Args:
        stage: number of the stage of the encoder (``recipes.nn.stages``) whose output, averaged over all places, the
            head reads; >= 0. If null, the head reads the features of the encoder.
        Other arguments: see ``Classifier``.

    Raises:
        ValueError: if ``num_classes`` is out of range or the encoder has no such stage.
    """

    def __init__(
        self,
        encoder: Encoder,
        num_classes: int,
        stage: int | None,
        optimizer: OptimizerCallable,
        scheduler: LRSchedulerCallable | None = None,
        lr_batch_size: int | None = None,
    ) -> None:
        super().__init__(encoder, num_classes, optimizer, scheduler, lr_batch_size)
        self.stage = stage
        if stage is not None:
            self.head = nn.Linear(stage_dim(encoder, stage), num_classes)
        self.frozen = FrozenStages(self.encoder)

    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W], uint8 or float in [0, 1], to the features [B, F] that the head reads."""
        self.check_range(image)
        image = self.normalize(image)
        return self.encoder(image) if self.stage is None else stage_features(self.encoder, image)[self.stage]

    def frozen_parameters(self) -> list[nn.Parameter]:
        """All parameters of the encoder."""
        return [*self.encoder.parameters()]

    def train(self, mode: bool = True) -> "FrozenClassifier":
        """Puts everything but the encoder into training mode."""
        super().train(mode)
        self.frozen.evaluate(range(len(self.frozen)))
        return self

    def setup(self, stage: str) -> None:
        """Warns of an encoder with random weights, before a training."""
        super().setup(stage)
        if stage == "fit":
            warn_of_random_weights(self.encoder)
