import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torchvision.models import SwinTransformer

from recipes.nn import ConvNet, MomentumCopy, check_momentum, cosine_momentum, projection_head
from recipes.optim import parameter_groups


class Method(nn.Module):
    """What a recipe with a momentum copy looks like."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.encoder = ConvNet((4, 8))
        self.projector = projection_head(8, 6, 5)
        self.target = MomentumCopy(self.encoder, self.projector)

    def sources(self):
        return {**named(self.encoder, "copies.0."), **named(self.projector, "copies.1.")}


def named(module, prefix=""):
    return {prefix + name: value for name, value in module.state_dict(keep_vars=True).items()}


def move(module, seed):
    """Another value for every parameter, as an optimiser writes it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))


def numbers(module):
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def images(n=6):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_copy_begins_equal_to_its_networks_with_the_head_and_shares_no_memory():
    method = Method()
    theirs, ours = method.sources(), named(method.target)
    assert equal(ours, theirs)
    assert {ours[name].data_ptr() for name in ours}.isdisjoint(theirs[name].data_ptr() for name in theirs)
    method.eval()
    image = images()
    assert torch.equal(method.target(image), method.projector(method.encoder(image)))


def test_several_updates_give_the_weighted_sum_of_all_the_networks_that_were():
    """ξₙ = τ₁⋯τₙ θ₀ + Σₖ (1 - τₖ) τₖ₊₁⋯τₙ θₖ, of what the networks held at each update."""
    method = Method().double()
    momenta = [0.5, 0.99, 0.9, 0.996]
    past = [numbers(method.encoder)]
    for seed, momentum in enumerate(momenta, start=1):
        move(method, seed)
        past.append(numbers(method.encoder))
        method.target.update(momentum)
    weights = [math.prod(momenta)]
    weights += [(1 - momentum) * math.prod(momenta[k:]) for k, momentum in enumerate(momenta, start=1)]
    assert sum(weights) == pytest.approx(1)
    for name, parameter in method.target.copies[0].named_parameters():
        expected = sum(weight * values[name] for weight, values in zip(weights, past, strict=True))
        torch.testing.assert_close(parameter, expected, rtol=1e-13, atol=1e-14)


def test_momentum_0_makes_the_copy_equal_and_momentum_1_changes_no_bit():
    method = Method()
    before = numbers(method.target)
    move(method, 1)
    method.target.update(1.0)
    assert equal(numbers(method.target), before)
    method.target.update(0.0)
    theirs = {**dict(method.encoder.named_parameters()), **dict(method.projector.named_parameters())}
    ours = {**dict(method.target.copies[0].named_parameters()), **dict(method.target.copies[1].named_parameters())}
    assert equal(ours, theirs)
    assert not equal(numbers(method.target), before)


def test_an_update_is_in_place_and_leaves_the_networks_as_they_are():
    method = Method()
    move(method, 1)
    theirs = numbers(method.encoder)
    places = {name: value.data_ptr() for name, value in named(method.target).items()}
    method.target.update(0.9)
    assert {name: value.data_ptr() for name, value in named(method.target).items()} == places
    assert equal(numbers(method.encoder), theirs)


def test_frozen_parameters_of_the_networks_are_followed_too():
    method = Method()
    method.encoder.requires_grad_(False)
    copied = MomentumCopy(method.encoder)
    with torch.no_grad():
        for parameter in method.encoder.parameters():
            parameter.add_(1)
    copied.update(0.0)
    assert equal(dict(copied.copies[0].named_parameters()), dict(method.encoder.named_parameters()))


def test_an_update_moves_no_buffer_and_integers_stay_as_they_were():
    torch.manual_seed(0)
    swin = SwinTransformer([4, 4], 8, [2], [2], [2, 2], num_classes=5)
    network = nn.Sequential(swin, nn.BatchNorm1d(5))
    target = MomentumCopy(network)
    network(torch.rand(2, 3, 8, 8))  # moves the running statistics of the network alone
    buffers = {name: buffer.clone() for name, buffer in target.named_buffers()}
    assert {buffer.dtype for buffer in buffers.values()} == {torch.int64, torch.float32}
    assert any(name.endswith("relative_position_index") for name in buffers)
    target.update(0.3)
    assert equal(dict(target.named_buffers()), buffers)
    assert network[1].num_batches_tracked == 1
    target.eval()(torch.rand(1, 3, 8, 8))  # the index still serves


def test_running_statistics_are_those_of_what_passes_through_the_copy_in_train_mode():
    """As in the code of MoCo and BYOL: neither copied from the networks nor averaged with theirs."""
    method = Method()
    layer, statistics = method.target.copies[0].network[1], nn.BatchNorm2d(4)
    assert isinstance(layer, nn.BatchNorm2d)
    seen = method.target.copies[0].network[0](images())
    statistics(seen)
    method.encoder(images() + 1)
    method.target(images())
    method.target.update(0.5)
    torch.testing.assert_close(layer.running_mean, statistics.running_mean)
    torch.testing.assert_close(layer.running_var, statistics.running_var)
    assert layer.num_batches_tracked == 1
    before = numbers(method.target)
    method.target.eval()(images())
    assert equal(numbers(method.target), before)


def test_the_copy_is_trained_by_nobody():
    method = Method()
    ours = {id(parameter) for parameter in method.target.parameters()}
    groups = parameter_groups(method)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert ours.isdisjoint(grouped)
    assert len(grouped) == len(list(method.encoder.parameters())) + len(list(method.projector.parameters()))
    assert not any(parameter.requires_grad for parameter in method.target.parameters())
    image = images().requires_grad_()  # as after a layer that is trained
    projection, target = method.projector(method.encoder(image)), method.target(image)
    assert target.grad_fn is None
    (projection - target).square().sum().backward()
    assert all(parameter.grad is None for parameter in method.target.parameters())
    assert all(parameter.grad is not None for parameter in method.encoder.parameters())


def test_the_state_dict_holds_the_copy_and_nothing_else_of_it():
    method = Method()
    move(method, 1)
    method.target.update(0.5)
    state = numbers(method)
    assert {name for name in state if name.startswith("target.")} == {f"target.{name}" for name in method.sources()}
    loaded = Method(seed=1)
    assert loaded.load_state_dict(state) == ([], [])
    for one in (method, loaded):  # and it goes on alike
        move(one, 2)
        one.target.update(0.7)
    assert equal(loaded.state_dict(), method.state_dict())
    assert not equal(loaded.state_dict(), state)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda method: pickle.loads(pickle.dumps(method))])
def test_a_copy_of_the_whole_follows_the_networks_of_that_copy(copied):
    method = Method()
    other = copied(method)
    before = numbers(method.target)
    move(other, 3)
    other.target.update(0.0)
    assert torch.equal(other.target.copies[1][0].weight, other.projector[0].weight)
    assert not torch.equal(other.target.copies[1][0].weight, method.projector[0].weight)
    assert equal(numbers(method.target), before)
    move(method, 4)
    method.target.update(0.0)
    assert torch.equal(method.target.copies[1][0].weight, method.projector[0].weight)


def test_a_layer_that_two_networks_share_stays_shared_and_moves_once():
    torch.manual_seed(0)
    shared = nn.Linear(3, 3).double()
    target = MomentumCopy(nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Linear(3, 2).double()))
    assert target.copies[0][0] is target.copies[1][0]
    before = shared.weight.detach().clone()
    with torch.no_grad():
        shared.weight.add_(1)
    target.update(0.75)
    torch.testing.assert_close(target.copies[0][0].weight, 0.75 * before + 0.25 * (before + 1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("momentum", [-0.1, 1.1, math.nan])
def test_a_momentum_out_of_range_is_refused_and_nothing_moves(momentum):
    method = Method()
    before = numbers(method.target)
    move(method, 1)
    with pytest.raises(ValueError, match=rf"momentum is {momentum}: it must be between 0 .* and 1"):
        method.target.update(momentum)
    assert equal(numbers(method.target), before)
    with pytest.raises(ValueError, match="momentum is"):
        check_momentum(momentum)


@pytest.mark.parametrize("momentum", [0, 0.5, 1])
def test_a_momentum_in_range_is_taken(momentum):
    check_momentum(momentum)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.996), (250, 1 - 0.004 * (math.sqrt(0.5) + 1) / 2), (500, 0.998), (1000, 1.0)],
)
def test_momentum_rises_to_one_by_half_a_cosine(step, expected):
    momentum = cosine_momentum(0.996, step, 1000)
    assert type(momentum) is float  # another type would not load again from a checkpoint
    assert momentum == pytest.approx(expected, abs=1e-15)


def test_momentum_rises_at_every_step_and_stays_in_range():
    momenta = [cosine_momentum(0.9, step, 37) for step in range(38)]
    assert momenta == sorted(set(momenta))
    for momentum in momenta:
        check_momentum(momentum)
    assert [cosine_momentum(1.0, step, 37) for step in range(38)] == [1.0] * 38
