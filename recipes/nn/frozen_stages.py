"""Parts of a network that do not learn, for good or for some steps."""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from recipes.nn.encoders.base import Encoder
from recipes.nn.encoders.stages import stage_of_state, stages


class FrozenStages:
    """The stages of an encoder, some of which do not learn now. Which ones, the recipe says at every call.

    Frozen for the whole run, a stage has ``requires_grad`` False, and the recipe's ``train()`` calls ``evaluate``.
    A stage that is frozen for some steps keeps ``requires_grad`` True, because DDP reads it only once and then waits
    for a gradient of every parameter at every step. So the recipe

    - calls ``evaluate`` in its ``train()``;
    - computes the features under ``detached``, if the stages before the frozen ones are frozen as well;
    - adds ``zero_of(frozen.parameters(...))`` to its logits or loss, which gives DDP gradients of zero;
    - calls ``drop_gradients`` in ``on_after_backward``, so that neither weight decay nor momentum moves the stage.

    It is no module: the encoder's parameters belong to the recipe.

    Args:
        encoder: whose stages (``recipes.nn.stages``).

    Attributes:
        stages: of the encoder, in order.
        stage_of: number of the stage of each entry of the encoder's state_dict.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.stages = stages(encoder)
        self.stage_of = stage_of_state(encoder)
        self._encoder = encoder

    def __len__(self) -> int:
        return len(self.stages)

    def parameters(self, numbers: Collection[int]) -> list[nn.Parameter]:
        """The parameters of the stages with these numbers, in the order of the encoder."""
        named = self._encoder.named_parameters() if numbers else ()
        return [parameter for name, parameter in named if self.stage_of[name] in numbers]

    def evaluate(self, numbers: Collection[int]) -> None:
        """Puts stages into eval mode: running statistics do not move, and dropout does nothing.

        With the numbers of all stages, the encoder is put into eval mode as a whole.
        """
        if len(set(numbers)) == len(self):
            self._encoder.eval()
        for number in numbers:
            for layer in self.stages[number].layers:
                self._encoder.get_submodule(layer).eval()

    @contextmanager
    def detached(self, count: int) -> Iterator[None]:
        """Computes no gradient in the first ``count`` stages of the encoder for a while."""
        some_learn = torch.is_grad_enabled() and count < len(self)
        last_layers = [stage.layers[-1] for stage in self.stages[:count]]
        with torch.set_grad_enabled(some_learn), detached(self._encoder, last_layers):
            yield


@contextmanager
def detached(module: nn.Module, layers: Iterable[str]) -> Iterator[None]:
    """Detaches the outputs of layers for a while: the layers, and those before them, get no gradient.

    Args:
        module: in which the layers are.
        layers: their names in it; each gives one tensor.
    """
    hooks = [module.get_submodule(layer).register_forward_hook(_detach) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def zero_of(parameters: Iterable[nn.Parameter]) -> Tensor | float:
    """Zero times the parameters, a scalar: added to a loss, it gives each of them a gradient of zero."""
    # of one number each: the sum of many may overflow in half precision, and 0 times infinity is not a number
    return sum((0 * parameter.flatten()[0] for parameter in parameters), start=0.0)


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Removes gradients after the backward pass: the optimiser leaves parameters without a gradient as they are."""
    for parameter in parameters:
        parameter.grad = None


def parameters_without(loss: Tensor, module: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of a module that a loss does not depend on."""
    reached, seen, todo = set(), set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # where a gradient is accumulated
            reached.add(id(node.variable))
        todo += [next_node for next_node, _ in node.next_functions]
    return [parameter for parameter in module.parameters() if parameter.requires_grad and id(parameter) not in reached]


def _detach(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output.detach()
