"""Two processes with unlike shards against torch's batch norm on the whole batch."""

import copy
import warnings

import pytest
import torch
from lightning.pytorch import seed_everything
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from datamodules import Digits
from recipes import SimCLR
from recipes.nn import ConvNet, CrossDeviceBatchNorm, has_local_batch_norm
from tests.helpers.fake_cuda import fake_cuda
from tests.helpers.processes import run
from tests.helpers.training import quiet_trainer

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(kind, dtype=torch.float64, **settings):
    """A layer with parameters of no special values, and the same across devices."""
    torch.manual_seed(0)
    layer = kind(3, **settings).to(dtype)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    return layer, CrossDeviceBatchNorm().apply(copy.deepcopy(layer))


def step(layer, x, target):
    """A loss that mixes outputs: the output, and the gradient of the input."""
    x = x.detach().requires_grad_()  # keeps the layout
    y = layer(x)
    (y.float() if y.dtype == torch.bfloat16 else y).sin().mul(target).sum().backward()
    return y.detach(), x.grad


def compare(layer, across, batches, sizes, outputs, state):
    """Some training steps and one in eval mode; ``outputs`` and ``state`` are tolerances."""
    rank = distributed.get_rank()
    for number, whole in enumerate([*batches, batches[0]]):
        for module in (layer, across):
            module.train(number < len(batches))
            module.zero_grad()
        target = numbers(*whole.shape, seed=9).to(whole.dtype if whole.dtype != torch.bfloat16 else torch.float32)
        expected = step(layer, whole, target)
        found = step(across, whole.split(sizes)[rank], target.split(sizes)[rank])
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours, theirs.split(sizes)[rank], **outputs)
        for ours, theirs in zip(across.parameters(), layer.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None)
            if ours.grad is not None:
                distributed.all_reduce(ours.grad)
                torch.testing.assert_close(ours.grad, theirs.grad, **outputs)
        torch.testing.assert_close(dict(across.state_dict()), dict(layer.state_dict()), **state)


def agree(cases, sizes):
    for kind, shape, settings in cases:
        layer, across = pair(kind, **settings)
        batches = [3 + 2 * numbers(sum(sizes), 3, *shape, seed=seed) for seed in range(3)]
        compare(layer, across, batches, sizes, outputs=EXACT, state=EXACT)


@pytest.mark.parametrize("sizes", [(5, 2), (1, 6), (7, 0)])
def test_outputs_gradients_and_running_statistics_are_those_of_the_whole_batch(sizes):
    kinds = [(nn.BatchNorm1d, ()), (nn.BatchNorm1d, (5,)), (nn.BatchNorm2d, (4, 2)), (nn.BatchNorm3d, (2, 3, 2))]
    run(agree, [(kind, shape, {}) for kind, shape in kinds], sizes, processes=2)


def agree_on_cuda_without_waiting(sizes):
    layer, across = pair(nn.BatchNorm2d)
    mine = numbers(sum(sizes), 3, 4, 2).split(sizes)[distributed.get_rank()]
    expected = step(across, mine, numbers(*mine.shape, seed=9))
    layer = CrossDeviceBatchNorm().apply(layer)
    with fake_cuda() as noted:
        layer.to("cuda")
        given = mine.to("cuda"), numbers(*mine.shape, seed=9).to("cuda")
        with noted() as waits:
            found = step(layer, *given)
        for ours, theirs in zip(found, expected):
            torch.testing.assert_close(ours.cpu(), theirs, **EXACT)
    assert list(waits) == [], waits


def test_the_host_does_not_wait_for_a_gpu():
    run(agree_on_cuda_without_waiting, (5, 2), processes=2)


def test_every_setting_of_torchs_holds():
    settings = [{"momentum": None}, {"momentum": 0.7, "eps": 0.1}, {"affine": False}]
    run(agree, [(nn.BatchNorm2d, (4, 2), each) for each in settings], (5, 2), processes=2)


def test_what_a_subclass_does_around_the_normalisation_is_done():
    from timm.layers import BatchNormAct2d  # with ReLU

    run(agree, [(BatchNormAct2d, (4, 2), {})], (5, 2), processes=2)


def agree_without_running_statistics_and_with_a_frozen_bias():
    rank, whole = distributed.get_rank(), numbers(7, 3)
    layer, across = pair(nn.BatchNorm1d, track_running_stats=False)
    torch.testing.assert_close(across(whole.split([5, 2])[rank]), layer(whole).split([5, 2])[rank], **EXACT)
    local = across.eval()(whole[: 2 + rank])  # only torch's own meaning is left: the batch of this device
    torch.testing.assert_close(local, layer(whole[: 2 + rank]), **EXACT)
    layer, across = pair(nn.BatchNorm1d)
    for module in (layer, across):
        module.bias.requires_grad_(False)
    compare(layer, across, [whole], [5, 2], outputs=EXACT, state=EXACT)


def test_running_statistics_may_be_missing_and_the_bias_frozen():
    run(agree_without_running_statistics_and_with_a_frozen_bias, processes=2)


def agree_in_float32(mean):
    layer, across = pair(nn.BatchNorm2d, dtype=torch.float32)
    whole = (mean + numbers(40, 3, 8, 8)).float()
    exact = step(copy.deepcopy(layer).double(), whole.double(), numbers(*whole.shape, seed=9))
    target = numbers(*whole.shape, seed=9).float()
    plain = step(copy.deepcopy(layer), whole, target)
    rows = slice(0, 25) if distributed.get_rank() == 0 else slice(25, 40)
    found = step(across, whole[rows], target[rows])
    for ours, theirs, truth in zip(found, plain, exact):
        assert (ours - truth[rows]).abs().max() <= 4 * (theirs - truth).abs().max() + 1e-6
    values = whole.double().transpose(0, 1).flatten(1)  # [C, N]
    torch.testing.assert_close(across.running_mean, 0.1 * values.mean(1).float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(across.running_var, (0.9 + 0.1 * values.var(1)).float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_float32_is_as_exact_as_torchs_also_where_the_mean_is_large(mean):
    run(agree_in_float32, mean, processes=2)


def agree_in_channels_last():
    layer, across = pair(nn.BatchNorm2d)
    batches = [numbers(7, 3, 4, 2, seed=seed).to(memory_format=torch.channels_last) for seed in range(2)]
    compare(layer, across, batches, [5, 2], outputs=EXACT, state=EXACT)
    across.train()
    y, gradient = step(across, batches[0], numbers(7, 3, 4, 2))  # of a layout other than the output's
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_channels_last_is_kept():
    run(agree_in_channels_last, processes=2)


def agree_in_bfloat16():
    layer, across = pair(nn.BatchNorm2d, dtype=torch.float32)
    x = (5 + numbers(7, 3, 4, 2)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        compare(layer, across, [x], [5, 2], outputs={"rtol": 2e-2, "atol": 2e-2}, state={"rtol": 1e-6, "atol": 1e-6})
        assert across(x).dtype == layer(x).dtype == torch.bfloat16


def test_statistics_of_bfloat16_are_in_float32():
    run(agree_in_bfloat16, processes=2)


def one_value_per_channel():
    layer = CrossDeviceBatchNorm().apply(nn.BatchNorm1d(3))
    rows = 1 - distributed.get_rank()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got 1"):
        layer(torch.ones(rows, 3))
    layer(torch.ones(1, 3))  # one on each is enough


def test_one_value_in_all_is_refused_on_every_device():
    run(one_value_per_channel, processes=2)


def collectives(layer, **tensor):
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        layer(torch.ones(2, 3, **tensor)).sum().backward()
    return sorted(event.name for event in profiled.events() if event.name.startswith("gloo:"))


def count_collectives():
    layer = CrossDeviceBatchNorm().apply(nn.BatchNorm1d(3))
    assert collectives(layer, requires_grad=True) == ["gloo:all_gather", "gloo:all_reduce"]
    assert collectives(layer) == ["gloo:all_gather"]
    assert collectives(layer.eval(), requires_grad=True) == []


def test_a_layer_costs_one_collective_forward_one_backward_and_none_in_eval():
    run(count_collectives, processes=2)


def compiled():
    layer, across = pair(nn.BatchNorm2d)
    net = torch.compile(nn.Sequential(nn.Tanh(), across, nn.Tanh()), backend="eager")
    whole, rows = numbers(6, 3, 4, 2), slice(3 * distributed.get_rank(), 3 * distributed.get_rank() + 3)
    expected = step(nn.Sequential(nn.Tanh(), layer, nn.Tanh()), whole, whole)
    for ours, theirs in zip(step(net, whole[rows], whole[rows]), expected):
        torch.testing.assert_close(ours, theirs[rows], **EXACT)


def test_a_compiled_network_is_right():
    run(compiled, processes=2)


def train_a_network():
    torch.manual_seed(0)
    one = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 5),
    ).double()
    two = CrossDeviceBatchNorm().apply(copy.deepcopy(one))
    rows = slice(0, 6) if distributed.get_rank() == 0 else slice(6, 12)
    for net, part in ((one, slice(None)), (DistributedDataParallel(two), rows)):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        for seed in range(3):
            optimizer.zero_grad()
            output = net(numbers(12, 1, 8, 8, seed=seed)[part])
            nn.functional.cross_entropy(output, torch.arange(12)[part] % 5).backward()
            optimizer.step()
    torch.testing.assert_close(two.state_dict(), one.state_dict(), **EXACT)


def test_a_network_trained_on_two_processes_is_that_of_one():
    run(train_a_network, processes=2)


def train_simclr(devices, plugins):
    seed_everything(0, verbose=False)
    sgd = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)  # noqa: E731
    recipe = SimCLR(ConvNet((4, 8), in_channels=1), optimizer=sgd, scheduler=None, lr_batch_size=None)
    trainer = quiet_trainer(devices=devices, plugins=plugins, precision="64-true", max_steps=3, limit_val_batches=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(recipe, Digits(batch_size=256))
    assert has_local_batch_norm(recipe)  # as it was before
    warned = any("plugins=CrossDeviceBatchNorm()" in str(warning.message) for warning in caught)
    return {name: value.tolist() for name, value in recipe.state_dict().items()}, warned


def test_simclr_on_two_devices_is_that_on_one():
    ((one, _),) = run(train_simclr, 1, CrossDeviceBatchNorm())
    for two, warned in run(train_simclr, 2, CrossDeviceBatchNorm(), processes=2):
        assert not warned
        for name, value in one.items():
            torch.testing.assert_close(
                *(torch.tensor(v, dtype=torch.float64) for v in (two[name], value)), rtol=1e-10, atol=1e-12, msg=name
            )


def test_simclr_warns_where_batch_norm_is_that_of_one_device():
    (_, warned), _ = run(train_simclr, 2, None, processes=2)
    assert warned
