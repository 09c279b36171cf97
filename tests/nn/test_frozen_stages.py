import copy

import pytest
import torch
from torch import nn

from recipes.nn import ConvNet, FrozenStages
from recipes.nn.frozen_stages import drop_gradients, parameters_without, zero_of

IMAGE = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def encoder():
    torch.manual_seed(0)
    return ConvNet((4, 4, 4), in_channels=1).double()


def modes(network):
    return {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d) and module.training}


def test_every_parameter_is_in_exactly_one_stage():
    network = encoder()
    frozen = FrozenStages(network)
    each = [frozen.parameters([number]) for number in range(len(frozen))]
    assert [id(p) for part in each for p in part] == [id(p) for p in network.parameters()]
    assert [id(p) for p in frozen.parameters(range(len(frozen)))] == [id(p) for p in network.parameters()]
    assert frozen.parameters([]) == []


@pytest.mark.parametrize("numbers", [[], [0], [1, 2], [0, 1, 2]])
def test_only_the_named_stages_are_in_eval_mode(numbers):
    network = encoder()
    frozen = FrozenStages(network)
    network.train()
    before = modes(network)
    frozen.evaluate(numbers)
    layers = [layer for number in numbers for layer in frozen.stages[number].layers]
    frozen_norms = {name for name in before if any(name == layer or name.startswith(f"{layer}.") for layer in layers)}
    assert modes(network) == before - frozen_norms
    assert network.training == (len(numbers) < len(frozen))


@pytest.mark.parametrize("count", range(4))
def test_detached_stages_have_no_gradient_and_the_others_have_theirs(count):
    network = encoder()
    frozen = FrozenStages(network)
    network.eval()
    network(IMAGE.double()).sum().backward()
    expected = [parameter.grad for parameter in frozen.parameters(range(count, len(frozen)))]
    network.zero_grad()
    with frozen.detached(count):
        feature = network(IMAGE.double())
    assert feature.requires_grad == (count < len(frozen))
    if feature.requires_grad:
        feature.sum().backward()
    assert all(parameter.grad is None for parameter in frozen.parameters(range(count)))
    for parameter, gradient in zip(frozen.parameters(range(count, len(frozen))), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_a_copy_of_a_network_has_frozen_stages_of_its_own():
    network = encoder()
    module = nn.Module()
    module.encoder, module.frozen = network, FrozenStages(network)
    twin = copy.deepcopy(module)
    assert [id(p) for p in twin.frozen.parameters(range(3))] == [id(p) for p in twin.encoder.parameters()]


def test_zero_of_parameters_gives_zero_gradients_which_can_be_dropped():
    reached, idle = nn.Linear(2, 2), nn.Linear(2, 2)
    loss = reached(torch.ones(1, 2)).sum()
    (loss + zero_of(idle.parameters())).backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in idle.parameters())
    drop_gradients(idle.parameters())
    assert all(p.grad is None for p in idle.parameters())
    assert all(p.grad is not None for p in reached.parameters())
    assert zero_of([]) == 0


def test_parameters_that_a_loss_does_not_depend_on_are_found():
    network = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.Linear(2, 2)})
    network["c"].requires_grad_(False)
    loss = (network["c"](network["a"](torch.ones(1, 2))) ** 2).sum()
    assert [id(p) for p in parameters_without(loss, network)] == [id(p) for p in network["b"].parameters()]


def test_zero_of_large_layers_in_half_precision_is_zero():
    parameter = nn.Parameter(torch.ones(70_000, dtype=torch.float16))  # whose sum is infinite
    zero = zero_of([parameter])
    zero.backward()
    assert zero == 0
    assert torch.equal(parameter.grad, torch.zeros(70_000, dtype=torch.float16))
