import pytest
import torch
from torch import nn

from recipes.nn import ConvNet, FeatureQueue, MomentumCopy, QuadraticPenalty, Snapshot, split_batch_norm


@pytest.mark.parametrize("converted", ["before it is copied", "together with its copy"])
def test_a_copy_of_a_network_in_bfloat16_moves_as_in_float32(converted):
    """After 3,000 updates at τ = 0.999, the share 0.999³⁰⁰⁰ of the distance is left: 5 %."""
    network = nn.Linear(4, 4)
    if converted.startswith("before"):
        network.bfloat16()
    both = nn.ModuleList([network, MomentumCopy(network)]).bfloat16()
    copied = both[1].copies[0].weight
    with torch.no_grad():
        copied.zero_()
        network.weight.fill_(1)
    for _ in range(3000):
        both[1].update(0.999)
    torch.testing.assert_close(1 - copied, torch.full_like(copied, 0.999**3000), rtol=1e-3, atol=0)


def test_state_is_never_narrower_than_float32_and_follows_every_other_conversion():
    parameter = nn.Parameter(torch.ones(2))
    for module in (FeatureQueue(4, 2), QuadraticPenalty([parameter]), MomentumCopy(nn.BatchNorm1d(2))):
        types = {name: value.dtype for name, value in module.state_dict().items()}
        for half in (torch.bfloat16, torch.float16):
            module.to(half)
            assert {name: value.dtype for name, value in module.state_dict().items()} == types
        module.double()
        assert {value.dtype for value in module.state_dict().values()} <= {torch.float64, torch.int64}
        module.bfloat16()
        assert {value.dtype for value in module.state_dict().values()} <= {torch.float64, torch.int64}
        module.to("meta")
        assert {value.device.type for value in module.state_dict().values()} == {"meta"}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("splits", [1, 2])
def test_a_copy_takes_images_of_the_precision_of_its_network_and_gives_features_of_it(dtype, splits):
    torch.manual_seed(0)
    encoder = ConvNet((4, 8))
    exact = MomentumCopy(encoder).double()
    copied = MomentumCopy(encoder)
    both = nn.ModuleList([encoder, copied]).to(dtype)
    for module in (both, exact):
        split_batch_norm(module, splits)
    image = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    feature = copied(image)
    assert feature.dtype == encoder(image).dtype == dtype
    rounding = {torch.bfloat16: 3e-2, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(feature.double(), exact(image.double()), rtol=rounding, atol=rounding)


def test_a_snapshot_in_bfloat16_takes_the_numbers_of_its_network():
    network = nn.Linear(3, 2).bfloat16()
    snapshot = Snapshot(network)
    with torch.no_grad():
        network.weight.mul_(2)
    snapshot.take()
    assert snapshot.copies[0].weight.tolist() == network.weight.tolist()
    assert snapshot(torch.ones(1, 3).bfloat16()).dtype == torch.bfloat16
