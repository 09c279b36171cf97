"""What methods share that hold weights near their old values by a penalty in the loss (EWC, SI)."""

from torch import Tensor, nn

from recipes.continual.base import ContinualRecipe


def held_parameters(*modules: nn.Module) -> list[Tensor]:
    """The trainable parameters of modules, in order: those that a penalty is on."""
    return [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]


def with_penalty(recipe: ContinualRecipe, cross_entropy: Tensor, penalty: Tensor) -> Tensor:
    """Adds a penalty to the cross-entropy of a training step.

    Logs ``train/penalty``, and ``train/penalty_ratio``: the penalty over the cross-entropy of all devices.

    Args:
        recipe: whose step it is.
        cross_entropy: of this device's images, a scalar.
        penalty: the same on every device, a scalar.

    Returns:
        The sum, a scalar.
    """
    recipe.log("train/penalty", penalty)
    of_weights, of_images = penalty.detach(), cross_entropy.detach()
    recipe.log("train/penalty_ratio", lambda: of_weights / recipe.gather(of_images[None]).mean())
    return cross_entropy + penalty
