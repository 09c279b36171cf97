import copy

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from recipes.nn import CrossDeviceBatchNorm, has_local_batch_norm


@pytest.fixture
def net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), BatchNormAct2d(4), nn.Flatten(), nn.LazyLinear(2), nn.BatchNorm1d(2)
    )


@pytest.mark.parametrize(
    ("module", "local"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), True),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.SyncBatchNorm(2)), False),
        (nn.Sequential(nn.LayerNorm(2), nn.GroupNorm(1, 2)), False),
        (CrossDeviceBatchNorm().apply(nn.Sequential(nn.BatchNorm3d(2))), False),
        (CrossDeviceBatchNorm().apply(nn.BatchNorm2d(2)), False),
    ],
)
def test_batch_norm_is_local_unless_it_is_synchronised(module, local):
    assert has_local_batch_norm(module) is local


def test_layers_keep_their_parameters_keys_and_settings(net):
    net[1].bias.requires_grad_(False)
    net[2].eval()
    keys, parts, tensors = list(net.state_dict()), list(net.modules()), [*net.parameters(), *net.buffers()]
    assert CrossDeviceBatchNorm().apply(net) is net
    assert list(net.state_dict()) == keys
    assert all(now is before for now, before in zip(net.modules(), parts, strict=True))
    assert all(now is before for now, before in zip([*net.parameters(), *net.buffers()], tensors, strict=True))
    assert not net[1].bias.requires_grad
    assert [net[1].training, net[2].training] == [True, False]


def test_reverting_gives_back_the_classes(net):
    plugin, classes = CrossDeviceBatchNorm(), [type(part) for part in net.modules()]
    plugin.apply(plugin.apply(net))
    assert [type(part) for part in net.modules()] != classes
    assert plugin.revert(net) is net
    assert [type(part) for part in net.modules()] == classes


def test_other_layers_are_left_alone():
    net = nn.Sequential(nn.SyncBatchNorm(2), nn.LazyBatchNorm1d(), nn.InstanceNorm1d(2), nn.LayerNorm(2))
    classes = [type(part) for part in net.modules()]
    CrossDeviceBatchNorm().apply(net)
    assert [type(part) for part in net.modules()] == classes


@pytest.mark.parametrize("training", [True, False])
def test_one_process_computes_what_it_always_did(net, training):
    image = torch.randn(6, 1, 8, 8)
    net(image)
    across = CrossDeviceBatchNorm().apply(copy.deepcopy(net))
    assert torch.equal(across.train(training)(image), net.train(training)(image))
    assert all(map(torch.equal, across.state_dict().values(), net.state_dict().values()))


def test_a_copy_of_a_layer_has_parameters_of_its_own():
    layer = CrossDeviceBatchNorm().apply(nn.BatchNorm1d(2))
    teacher = copy.deepcopy(layer)
    assert not has_local_batch_norm(teacher)
    assert teacher.weight is not layer.weight
