from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.hooks import RemovableHandle

from losses.precision import at_least_float32
from recipes.nn.passes import evaluating

State = dict[str, Tensor]
_NUMBERS = 1 << 26  # of gradients of single images in memory: 256 MiB in float32, a few times


def diagonal_fisher(network: nn.Module, image: Tensor, classes: Tensor, chunk_size: int = 32) -> list[Tensor]:
    """The diagonal of the Fisher information of a classifier: the importance of each of its parameters.

    F = 1/N Σₙ Σ_c p(c|xₙ) (∂ log p(c|xₙ) / ∂θ)², where p is the softmax over some of the classes: the expectation over
    labels is exact, no label is drawn, and no gradient is a mean over images before it is squared (van de Ven, 2025,
    arXiv:2502.11756, "exact"). Nothing is changed: neither the network, nor its running statistics and modes, nor a
    ``.grad``, nor the state of a random number generator.

    Linear layers that are given one row for each image are cheap: the squared gradient of a weight is g² a², with a
    what goes into the layer and g the gradient of what comes out (Goodfellow, 2015, arXiv:1510.01799). Of all other
    parameters, the gradients of single images are computed.

    Args:
        network: maps images [B, ...] to logits [B, C], each image by itself in eval mode, which it is taken in.
        image: [N, ...], of a type that the network takes.
        classes: those that the images can be of, int64 [K], or bool [C].
        chunk_size: how many images are computed at a time, > 0, and fewer where their gradients are large; the result
            does not depend on it.

    Returns:
        A tensor for each of the parameters that require a gradient, in the order of ``network.parameters()``; float32
        or, for parameters in float64, that.

    Raises:
        ValueError: if there is no image or no class.
    """
    classes = classes.nonzero()[:, 0] if classes.dtype == torch.bool else classes
    if len(image) == 0 or len(classes) == 0:
        raise ValueError(
            f"the Fisher information of {len(image)} images and {len(classes)} classes: give at least one of each"
        )
    image = at_least_float32(image)
    state = {name: at_least_float32(tensor.detach()) for name, tensor in _named_tensors(network)}
    fisher = {name: torch.zeros_like(state[name]) for name, p in network.named_parameters() if p.requires_grad}
    with evaluating(network), torch.autocast(image.device.type, enabled=False):
        linear = _linear_layers(network, state, image)
        others = [name for name in fisher if name.rpartition(".")[0] not in linear]
        few = _NUMBERS // max(1, sum(fisher[name].numel() for name in others))
        for of_part, names, size in (
            (_of_linear_layers, linear, chunk_size),
            (_of_others, others, max(1, min(few, chunk_size))),
        ):
            for images in image.split(size) if names else ():
                for name, squares in of_part(network, state, names, images, classes).items():
                    if name in fisher:
                        fisher[name] += squares
    return [total / len(image) for total in fisher.values()]


def _weighted_log_p(logits: Tensor, classes: Tensor) -> Tensor:
    """√p log p for logits [B, C] and the chosen classes, [B, K]; p counts as a constant, so that squares weigh p."""
    log_p = logits[:, classes].log_softmax(1)
    return log_p * log_p.detach().exp().sqrt()


def _of_others(network: nn.Module, state: State, names: list[str], images: Tensor, classes: Tensor) -> State:
    """Sums over images and classes for the parameters of these names, from the gradients of each image."""

    def of_one(image: Tensor) -> State:
        def weighted(chosen: State) -> Tensor:
            return _weighted_log_p(functional_call(network, state | chosen, image[None]), classes)[0]

        values, gradients = vjp(weighted, {name: state[name] for name in names})  # type: ignore[misc]  # no aux
        squares = {name: torch.zeros_like(state[name]) for name in names}
        for row in torch.eye(len(values)).to(values):
            for name, gradient in gradients(row)[0].items():
                squares[name] = squares[name] + gradient.square()
        return squares

    with sdpa_kernel(SDPBackend.MATH):  # the others know no vmap
        return {name: squares.sum(0) for name, squares in vmap(of_one)(images).items()}


def _of_linear_layers(network: nn.Module, state: State, names: list[str], images: Tensor, classes: Tensor) -> State:
    """Sums over images and classes for the weights and biases of these layers, without gradients of single images."""
    inputs: State = {}
    probes: State = {}  # zeros that are added to what comes out: they have its gradient, whatever is done to it later

    def hook(name: str, x: Tensor, y: Tensor) -> Tensor:
        inputs[name], probes[name] = x.detach(), torch.zeros_like(y).requires_grad_()
        return y + probes[name]

    with torch.enable_grad(), _hooks(network, names, hook):
        columns = _weighted_log_p(functional_call(network, state, images), classes).sum(0).unbind()
    squares = [torch.zeros_like(probe) for probe in probes.values()]
    for column in columns:
        gradients = torch.autograd.grad(column, list(probes.values()), retain_graph=True, materialize_grads=True)
        for square, gradient in zip(squares, gradients):
            square += gradient.square()
    terms: State = {}
    for name, square in zip(probes, squares):
        prefix = f"{name}." if name else ""
        terms |= {f"{prefix}weight": square.T @ inputs[name].square(), f"{prefix}bias": square.sum(0)}
    return terms


def _linear_layers(network: nn.Module, state: State, image: Tensor) -> list[str]:
    """The names of the linear layers that are called once, with a row for each image, and share no parameter."""
    linear = [name for name, module in network.named_modules() if type(module) is nn.Linear]
    calls: dict[str, list[Tensor]] = defaultdict(list)
    with torch.no_grad(), _hooks(network, linear, lambda name, x, y: calls[name].append(x)):
        functional_call(network, state, torch.cat([image[:1]] * 2))
    uses = Counter(parameter for _, parameter in network.named_parameters(remove_duplicate=False))
    return [
        name
        for name, inputs in calls.items()
        if [(x.ndim, len(x)) for x in inputs] == [(2, 2)]
        and all(uses[parameter] == 1 for parameter in network.get_submodule(name).parameters())
    ]


@contextmanager
def _hooks(network: nn.Module, names: list[str], hook: Callable[[str, Tensor, Tensor], Any]) -> Iterator[None]:
    """Calls a function with the name, input and output of layers, and has it change the output."""

    def on(name: str) -> RemovableHandle:
        module = network.get_submodule(name)
        return module.register_forward_hook(lambda _, args, output: hook(name, args[0], output))

    handles = [on(name) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _named_tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()
