"""Starts a continual recipe from a finished classifier, whose classes are those of the first task."""

from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from recipes.base.checkpoint import load
from recipes.base.checks import tell_reading
from recipes.base.classifier import Classifier
from recipes.continual.added_classes import AddedClasses
from recipes.nn import MultiHead, evaluating
from recipes.nn.encoders.files import checkpoint_file, read_weights
from recipes.nn.encoders.weights import load_mismatch, load_weights

if TYPE_CHECKING:
    from recipes.continual.base import ContinualRecipe

_SAME = 1e-4  # largest difference of the logits that is allowed, over the largest logit


def start_from_classifier(recipe: "ContinualRecipe", data: AddedClasses) -> None:
    """Gives a recipe the encoder, the first head and the normalisation of the classifier: its first task is over.

    Args:
        recipe: whose training begins.
        data: with the classifier.

    Raises:
        ValueError: if the recipe needs images of the old classes, or the classifier does not fit.
    """
    name = type(recipe).__name__
    if recipe.adds_classes is None:
        raise ValueError(
            f"{name} needs images of the classes that {data.classifier} has learned: choose LwF, FeatureExtraction, "
            "FineTuning, EWC or ICaRL, or train on a TaskSequence with all images"
        )
    path = checkpoint_file(data.classifier) or data.classifier
    with torch.random.fork_rng(devices=[]):
        if path.suffix == ".ckpt":
            _take_run(recipe, load(path), data)
        else:
            load_weights(recipe.encoder, path)
            weight, bias = _linear_layer(read_weights(path).state, len(data.learned), recipe.feature_dim, str(path))
            _take_head(recipe, weight, bias)
    recipe.first_without_images = True
    rank_zero_info(f"{name} adds classes to the {len(data.learned)} of {data.classifier}")
    if recipe.adds_classes:
        rank_zero_info(f"{name} has {recipe.adds_classes}")


def _take_run(recipe: "ContinualRecipe", source: nn.Module, data: AddedClasses) -> None:
    where, classes = data.classifier, len(data.learned)
    if not isinstance(source, Classifier) or not source.has_probabilities:
        raise ValueError(f"{where} is a run of {type(source).__name__}: give a run of a classifier with probabilities")
    mismatch = load_mismatch(recipe.encoder, source.encoder.state_dict())
    ours, theirs = type(recipe.encoder).__name__, type(source.encoder).__name__
    if mismatch or ours != theirs:
        reason = f" ({mismatch})" if mismatch else ""
        raise ValueError(f"the encoder is {ours}, and that of {where} another {theirs}{reason}: give the same encoder")
    head = source.head.joined() if isinstance(source.head, MultiHead) else source.head
    if not isinstance(head, nn.Linear) or head.weight.shape != (classes, recipe.feature_dim):
        raise ValueError(f"{where} has no linear layer on its features for {classes} classes: give another classifier")
    recipe.encoder.load_state_dict(source.encoder.state_dict())
    recipe.encoder.pretrained = True
    if (known := source.normalize.known) is not None:
        recipe.normalize.set(*known)
    recipe.reading = source.reading
    tell_reading(recipe, None)
    _take_head(recipe, head.weight, head.bias)
    _check_same(recipe, source, data)


def _take_head(recipe: "ContinualRecipe", weight: Tensor, bias: Tensor | None) -> None:
    first = recipe.head.heads[0]
    with torch.no_grad():
        first.weight.copy_(weight)
        first.bias.copy_(torch.zeros_like(first.bias) if bias is None else bias)


@torch.no_grad()
def _check_same(recipe: "ContinualRecipe", source: Classifier, data: AddedClasses) -> None:
    """Checks that encoder and head alone give the classifier's predictions: not so for an average or another stage."""
    noise = torch.rand(4, *data.image_shape, generator=torch.Generator().manual_seed(0))
    parameter = next(recipe.parameters())
    with evaluating(recipe):
        ours = recipe.unmasked_logits(recipe(noise.to(parameter)))[:, : len(data.learned)].cpu()
    theirs = source.to(parameter.dtype).classify(noise.to(parameter.dtype)).to(ours)
    if not (ours - theirs).abs().max() <= _SAME * theirs.abs().max():
        raise ValueError(
            f"{data.classifier} is a run of {type(source).__name__}, whose predictions are not those of its encoder "
            "with a linear layer on top: give a run of Supervised or FineTune"
        )


def _linear_layer(state: dict[str, Tensor], classes: int, features: int, path: str) -> tuple[Tensor, Tensor | None]:
    """The weight and bias of the only linear layer from features to classes in a file."""
    found = [name for name, value in state.items() if value.shape == (classes, features)]
    found = [name for name in found if name.endswith("weight")]
    if len(found) != 1:
        raise ValueError(
            f"{path} has {len(found)} layers from {features} features to {classes} classes: give weights with one, and "
            "the names of all its classes in class_names"
        )
    bias = state.get(f"{found[0].removesuffix('weight')}bias")
    return state[found[0]], bias
