"""Whether images and checkpoints fit a recipe."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import CombinedLoader, rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from datamodules.reading import Reading
from recipes.augment import RandomResizedCrop
from recipes.errors import CheckpointMismatch
from recipes.nn import evaluating, load_mismatch

if TYPE_CHECKING:
    from recipes.base.recipe import Recipe


def check_precision(recipe: "Recipe") -> None:
    """Refuses to train in float16 without a scale; warns of weights in bfloat16, and of GPUs that only emulate it."""
    precision = recipe.trainer.precision
    on_gpu = recipe.trainer.strategy.root_device.type == "cuda"
    if on_gpu and precision.startswith("bf16") and not torch.cuda.is_bf16_supported(including_emulation=False):
        rank_zero_warn(
            f"precision is {precision}, and {torch.cuda.get_device_name()} computes in bfloat16 by emulation, which is "
            "slow: use 16-mixed"
        )
    if precision == "16-true":
        raise ValueError(
            "precision is 16-true: training in float16 without a scale makes small gradients 0 and large numbers "
            "infinite. Use 16-mixed or bf16-mixed"
        )
    if precision == "bf16-true":
        rank_zero_warn(
            "precision bf16-true keeps the weights and the averages of the optimiser in bfloat16, which rounds away "
            "changes below 1/256 of a number. bf16-mixed keeps them in float32"
        )


def check_batch_size(recipe: "Recipe", images: int) -> None:
    """Refuses global batches that are too small to learn from, or for batch norm of features."""
    norm = any(isinstance(part, nn.BatchNorm1d) and part.training for part in recipe.modules())
    if images < (needed := max(recipe.smallest_batch, 1 + norm)):
        why = "batch norm needs more than one image" if norm else "the loss compares the images of a batch"
        raise ValueError(f"batch_size is {images}: {type(recipe).__name__} needs at least {needed}, because {why}")


def check_indices(recipe: "Recipe", given: Any) -> None:
    """Refuses training batches of a plain loader without indices, if the recipe keeps something for every image."""
    if recipe.remembers_images and (isinstance(given, Tensor) or len(given) < 3):
        raise ValueError(
            f"{type(recipe).__name__} keeps something for every image: give batches (image, label, index) with the "
            "position of each image in its dataset, or a DataModule"
        )


def source_of(trainer: Any, stage: str) -> Any:
    """What a run of a Trainer reads: a DataModule, loaders, or a module that makes them; for ``fit``, to validate."""
    loops = {
        "fit": trainer.fit_loop.epoch_loop.val_loop,
        "validate": trainer.validate_loop,
        "test": trainer.test_loop,
        "predict": trainer.predict_loop,
    }
    return loops[str(getattr(stage, "value", stage))]._data_source.instance


def check_loaders(recipe: "Recipe", stage: str) -> None:
    """Refuses several loaders for one evaluation: measures would be of which one?"""
    stage = str(getattr(stage, "value", stage))  # Lightning gives an enumeration
    given = source_of(recipe.trainer, stage)
    if isinstance(given, list | tuple | dict | CombinedLoader) and (count := len(CombinedLoader(given).flattened)) > 1:
        name = "validation" if stage in ("fit", "validate") else stage
        remedy = "one loader, such as of a torch.utils.data.ConcatDataset"
        if stage != "fit":
            remedy += f", or call Trainer.{stage} once for each"
        raise ValueError(f"there are {count} {name} loaders: {type(recipe).__name__} measures one. Give {remedy}")


def check_labels(recipe: "Recipe", label: Tensor) -> None:
    """Refuses labels that are no class of a classifier; -1 is unlabelled."""
    classes = getattr(getattr(recipe, "head", None), "out_features", None)
    if classes is None or not len(label):
        return
    low, high = int(label.min()), int(label.max())
    if low < -1 or high >= classes:
        raise ValueError(
            f"labels are from {low} to {high}: with num_classes {classes}, they must be from 0 to {classes - 1}, or -1 "
            f"for unlabelled images. Create {type(recipe).__name__} with the number of classes of the data"
        )


def check_encoder(recipe: "Recipe", shape: Sequence[int]) -> None:
    """Refuses images of a shape [C, H, W] that the encoder cannot take, and an encoder that gives no feature vector."""
    encoder, (channels, height, width) = recipe.encoder, shape
    name = type(encoder).__name__
    if channels != encoder.in_channels:
        raise ValueError(
            f"the images have {channels} channels, {name} takes {encoder.in_channels}: "
            f"set in_channels of the encoder to {channels}"
        )
    try:
        with torch.no_grad(), evaluating(encoder):
            like = next(encoder.parameters(), recipe.normalize.mean)
            feature = encoder(torch.zeros(1, *shape).to(like))
    except RuntimeError as error:
        raise ValueError(
            f"{name} cannot take images of {height}×{width} pixels; choose larger images or an encoder for small "
            f"ones ({str(error).splitlines()[0]})"
        ) from error
    if feature.shape != (1, recipe.feature_dim):
        raise ValueError(
            f"{name} gives {list(feature.shape)} for one image; an encoder gives [1, feature_dim], "
            f"here [1, {recipe.feature_dim}]"
        )


def tell_reading(recipe: "Recipe", stage: str | None) -> None:
    """Says if the data is read otherwise than the images that the network was trained on."""
    ours = getattr(recipe.datamodule, "reading", None)
    if isinstance(ours, Reading) and (differences := ours.differences(recipe.reading)):
        tell = rank_zero_info if stage == "fit" else rank_zero_warn
        tell(
            f"the images are read {differences}, with which the network was trained. Where this is not meant, set the "
            f"arguments of {type(recipe.datamodule).__name__} to the values of the training, or to null"
        )


def tell_small_images(recipe: "Recipe", shape: Sequence[int]) -> None:
    """Says if the views are larger than the images: training then enlarges images that evaluations do not."""
    crops = [] if recipe.views is None else [*recipe.views.modules()]
    sizes = [part.size for part in crops if isinstance(part, RandomResizedCrop) and part.size is not None]
    image, largest = tuple(shape[1:]), max(sizes, default=(0, 0))
    if largest > image:
        rank_zero_warn(
            f"the views have {largest[0]}×{largest[1]} pixels and the images {image[0]}×{image[1]}: training enlarges "
            "images that validation and tests leave as they are. Set the size of the views (model.views.size) to null, "
            "for that of the images, or enlarge the images"
        )


def check_checkpoint(recipe: "Recipe", checkpoint: dict[str, Any]) -> None:
    """Refuses a checkpoint of another recipe or of another network."""
    theirs, ours = checkpoint.get("recipe"), type(recipe).__name__
    if theirs is not None and theirs != ours:
        raise CheckpointMismatch(f"the checkpoint is of the recipe {theirs}, this run is {ours}: use --model {theirs}")
    if problem := load_mismatch(recipe, checkpoint["state_dict"]):
        raise CheckpointMismatch(f"the checkpoint does not fit this {ours}: {problem}")
