import copy
import pickle

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import distributed, nn

from recipes.nn import (
    CrossDeviceBatchNorm,
    MomentumCopy,
    average_running_statistics,
    has_local_batch_norm,
    split_batch_norm,
)
from tests.helpers.processes import run

KINDS = [
    (nn.BatchNorm1d, (), {}),
    (nn.BatchNorm1d, (5,), {}),
    (nn.BatchNorm2d, (3, 4), {}),
    (nn.BatchNorm3d, (2, 3, 2), {}),
    (nn.BatchNorm2d, (3, 4), {"momentum": None}),
    (nn.BatchNorm2d, (3, 4), {"momentum": 0.7, "eps": 0.1}),
    (nn.BatchNorm2d, (3, 4), {"affine": False}),
    (nn.BatchNorm2d, (3, 4), {"track_running_stats": False}),
    (BatchNormAct2d, (3, 4), {}),  # with ReLU
]


def numbers(*shape, seed=0):
    """Images of unlike mean and spread, so that each part has statistics of its own."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.arange(1, len(x) + 1).view(-1, *[1] * (x.ndim - 1)) + seed


def layer_of(kind, **settings):
    """A layer in float64 with parameters of no special values."""
    torch.manual_seed(0)
    layer = kind(2, **settings).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer


def split(layer, groups):
    layer = copy.deepcopy(layer)
    split_batch_norm(layer, groups)
    return layer


def step(layers, parts):
    """Each layer on its part: outputs, gradients of the inputs and, summed, of the parameters."""
    parts = [part.detach().clone().requires_grad_() for part in parts]
    outputs = torch.cat([layer(part) for layer, part in zip(layers, parts, strict=True)])
    outputs.sin().mul(numbers(*outputs.shape, seed=9)).sum().backward()
    of_parameters = [sum(same) for same in zip(*([p.grad for p in layer.parameters()] for layer in layers))]
    return outputs.detach(), torch.cat([part.grad for part in parts]), of_parameters


@pytest.mark.parametrize("groups", [2, 3, 6])
@pytest.mark.parametrize(("kind", "shape", "settings"), KINDS)
def test_every_part_is_normalised_by_itself_and_running_statistics_take_the_mean(kind, shape, settings, groups):
    layer = layer_of(kind, **settings)
    splitted = split(layer, groups)
    each = [copy.deepcopy(layer) for _ in range(groups)]  # a layer of its own for every part
    for seed in range(3):
        batch = numbers(12, 2, *shape, seed=seed)
        for one in (splitted, *each):
            one.zero_grad()
        found, expected = step([splitted], [batch]), step(each, batch.chunk(groups))
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        for name, buffer in splitted.named_buffers():
            theirs = torch.stack([dict(one.named_buffers())[name].double() for one in each]).mean(0)
            torch.testing.assert_close(buffer.double(), theirs, rtol=1e-12, atol=1e-12)
            for one in each:  # which start the next batch from the mean
                dict(one.named_buffers())[name].copy_(theirs)


@pytest.mark.parametrize(("kind", "shape", "settings"), KINDS)
def test_one_part_and_eval_mode_are_torchs_to_the_bit(kind, shape, settings):
    layer, batch = layer_of(kind, **settings), numbers(12, 2, *shape)
    layer(batch + 3)
    for splitted in (split(layer, 1), split(layer, 3).eval()):
        plain = copy.deepcopy(layer).train(splitted.training)
        assert torch.equal(splitted(batch), plain(batch))
        assert all(map(torch.equal, splitted.state_dict().values(), plain.state_dict().values()))


def test_parts_are_cut_first_to_last():
    layer = nn.BatchNorm1d(1, affine=False, eps=1e-12)
    split_batch_norm(layer, 2)
    batch = torch.tensor([[0.0], [2.0], [10.0], [14.0]])
    torch.testing.assert_close(layer(batch), torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]))
    torch.testing.assert_close(layer.running_mean, torch.tensor([0.1 * (1 + 12) / 2]))
    torch.testing.assert_close(layer.running_var, torch.tensor([0.9 + 0.1 * (2 + 8) / 2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_half_precision_images_are_normalised_as_by_torch(dtype):
    layer = layer_of(nn.BatchNorm2d).float()
    batch = numbers(6, 2, 3, 4).to(dtype).to(memory_format=torch.channels_last)
    splitted, each = split(layer, 3), [copy.deepcopy(layer) for _ in range(3)]
    found = splitted(batch)
    expected = torch.cat([one(part) for one, part in zip(each, batch.chunk(3), strict=True)])
    assert found.dtype == expected.dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(splitted.running_mean, torch.stack([one.running_mean for one in each]).mean(0))
    torch.testing.assert_close(splitted.running_var, torch.stack([one.running_var for one in each]).mean(0))


def test_layers_stay_the_same_objects_and_a_second_call_sets_another_number():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Sequential(BatchNormAct2d(2), nn.LayerNorm(2)))
    keys, parts, tensors = list(net.state_dict()), list(net.modules()), [*net.parameters(), *net.buffers()]
    split_batch_norm(net, 4)
    split_batch_norm(net, 2)
    assert list(net.state_dict()) == keys
    assert all(now is before for now, before in zip(net.modules(), parts, strict=True))
    assert all(now is before for now, before in zip([*net.parameters(), *net.buffers()], tensors, strict=True))
    assert isinstance(net[1], nn.BatchNorm2d)
    batch = numbers(4, 2, 3, 3).float()
    expected = torch.cat([nn.BatchNorm2d(2)(part) for part in batch.chunk(2)])
    torch.testing.assert_close(net[1](batch), expected)
    torch.testing.assert_close(net[2][0](batch), expected.relu())


def test_other_layers_are_left_alone():
    net = nn.Sequential(nn.SyncBatchNorm(2), nn.LazyBatchNorm1d(), nn.InstanceNorm1d(2), nn.GroupNorm(1, 2))
    across = CrossDeviceBatchNorm().apply(nn.BatchNorm2d(2))
    classes = [type(part) for part in (*net.modules(), across)]
    split_batch_norm(net, 2)
    split_batch_norm(across, 2)
    assert [type(part) for part in (*net.modules(), across)] == classes


def test_layers_that_are_split_are_not_joined_across_devices():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.ReLU())
    split_batch_norm(net, 2)
    kind = type(net[0])
    assert not has_local_batch_norm(net)
    CrossDeviceBatchNorm().apply(net)
    assert type(net[0]) is kind


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda layer: pickle.loads(pickle.dumps(layer)),
        lambda layer: MomentumCopy(layer).copies[0],
    ],
)
def test_a_copy_is_split_as_well(copied):
    layer, batch = split(layer_of(nn.BatchNorm1d), 3), numbers(6, 2)
    other = copied(layer)
    assert other.weight is not layer.weight
    expected = layer(batch)
    assert torch.equal(other(batch), expected)
    assert torch.equal(other.running_var, layer.running_var)
    split_batch_norm(other, 2)
    assert not torch.equal(other(batch), expected)
    assert torch.equal(layer(batch), expected)


def test_a_batch_that_does_not_divide_is_refused():
    layer = split(layer_of(nn.BatchNorm1d), 3)
    with pytest.raises(ValueError, match="a batch of 7 does not divide into 3 groups"):
        layer(numbers(7, 2))
    layer.eval()(numbers(7, 2))


def test_parts_of_one_value_per_channel_are_refused():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        split(layer_of(nn.BatchNorm1d), 3)(numbers(3, 2))


def test_running_statistics_become_the_mean_over_devices_and_nothing_else_changes():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.BatchNorm1d(3), nn.ReLU())
    net[0].running_mean.copy_(torch.tensor([1.0, -2.0]))
    net[2].running_var.copy_(torch.tensor([1.0, 3.0, 5.0]))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    average_running_statistics(net, lambda x: torch.cat([x, 2 * x, 6 * x]))
    for name, value in net.state_dict().items():
        running = name.endswith(("running_mean", "running_var"))
        assert torch.equal(value, before[name] * 3 if running else before[name])


def test_a_module_without_running_statistics_gathers_nothing():
    def gather(x):
        raise AssertionError

    average_running_statistics(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False)), gather)


def parts_on_two_devices():
    def gather(x):
        everyones = [torch.empty_like(x) for _ in range(2)]
        distributed.all_gather(everyones, x)
        return torch.cat(everyones)

    whole, share = split(layer_of(nn.BatchNorm2d), 4), split(layer_of(nn.BatchNorm2d), 2)
    for seed in range(3):
        batch = numbers(8, 2, 3, 3, seed=seed)
        expected = whole(batch).chunk(2)[distributed.get_rank()]
        torch.testing.assert_close(share(batch.chunk(2)[distributed.get_rank()]), expected, rtol=1e-12, atol=1e-12)
        average_running_statistics(share, gather)
        torch.testing.assert_close(dict(share.named_buffers()), dict(whole.named_buffers()), rtol=1e-12, atol=1e-12)


def test_two_parts_on_each_of_two_devices_are_four_parts_on_one():
    run(parts_on_two_devices, processes=2)
