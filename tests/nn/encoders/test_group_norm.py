import pytest
import torch
from torch import nn

from recipes.nn import ConvNet, ResNet, TorchvisionEncoder, sees_the_batch

ENCODERS = {
    "ConvNet": lambda norm: ConvNet((16, 32), norm=norm),
    "ResNet": lambda norm: ResNet(8, norm=norm),
    "resnet18": lambda norm: TorchvisionEncoder("resnet18", stem="small", norm=norm),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_with_group_norm_the_features_of_an_image_do_not_depend_on_the_others(name):
    image = torch.rand(4, 1 if name == "ConvNet" else 3, 16, 16)
    for norm, alone in (("group", True), ("batch", False)):
        torch.manual_seed(0)
        encoder = ENCODERS[name](norm)
        assert sees_the_batch(encoder) != alone
        assert torch.allclose(encoder(image)[:2], encoder(image[:2]), atol=1e-5) == alone


@pytest.mark.parametrize("name", ENCODERS)
def test_both_norms_have_as_many_parameters(name):
    batch, group = (sum(p.numel() for p in ENCODERS[name](norm).parameters()) for norm in ("batch", "group"))
    assert batch == group


def test_groups_have_sixteen_channels_or_are_the_layer():
    norms = [m for m in ConvNet((16, 64, 24), norm="group").modules() if isinstance(m, nn.GroupNorm)]
    assert [(norm.num_groups, norm.num_channels) for norm in norms] == [(1, 16), (4, 64), (1, 24)]


def test_batch_norm_in_eval_mode_does_not_see_the_batch():
    assert not sees_the_batch(ResNet(8).eval())


@pytest.mark.parametrize("encoder", ENCODERS.values())
def test_an_unknown_norm_is_refused(encoder):
    with pytest.raises(ValueError, match="norm is 'layer': it must be 'batch' or 'group'"):
        encoder("layer")


def test_weights_that_were_trained_with_batch_norm_are_refused():
    with pytest.raises(ValueError, match="trained with batch norm"):
        TorchvisionEncoder("resnet18", weights="DEFAULT", norm="group")
