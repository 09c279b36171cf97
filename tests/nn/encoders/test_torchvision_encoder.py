import pytest
import torch
from torch import nn
from torchvision import models

from recipes.nn import TorchvisionEncoder

FAMILIES = {  # name: number of features, side of a small image
    "resnet18": (512, 32),
    "alexnet": (4096, 64),
    "vgg11": (4096, 32),
    "squeezenet1_1": (512, 32),
    "densenet121": (1024, 32),
    "mobilenet_v2": (1280, 32),
    "mobilenet_v3_small": (1024, 32),
    "efficientnet_b0": (1280, 32),
    "convnext_tiny": (768, 32),
    "shufflenet_v2_x0_5": (1024, 32),
    "mnasnet0_5": (1280, 32),
    "regnet_x_400mf": (400, 32),
    "swin_t": (768, 32),
    "vit_b_16": (768, 32),
    "googlenet": (1024, 32),
    "inception_v3": (2048, 75),
}


@pytest.fixture(autouse=True)
def no_initialisation(monkeypatch):
    """Large layers take seconds to initialise, which no shape depends on; small weights stay finite."""
    for name in ("kaiming_normal_", "kaiming_uniform_", "trunc_normal_", "xavier_uniform_", "normal_", "uniform_"):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: nn.init.constant_(tensor, 0.01))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gives_features_without_dropout_or_logits(name):
    feature_dim, size = FAMILIES[name]
    encoder = TorchvisionEncoder(name, image_size=size if name.startswith("vit") else None)
    assert encoder.feature_dim == feature_dim
    with torch.no_grad():
        assert encoder(torch.rand(2, 3, size, size)).shape == (2, feature_dim)  # in train mode: no auxiliary outputs
    logits = [m for m in encoder.modules() if isinstance(m, nn.Linear) and m.out_features == 1000]
    assert logits == []


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v2", "mnasnet0_5", "squeezenet1_1", "googlenet"])
def test_the_dropout_of_the_classifier_goes_too(name):
    assert not any(isinstance(m, nn.Dropout) and m.p > 0 for m in TorchvisionEncoder(name).modules())


def test_features_are_what_torchvision_puts_into_its_classifier():
    torch.manual_seed(0)
    network = models.shufflenet_v2_x0_5()
    for p in network.parameters():
        p.data.copy_(0.1 * torch.randn_like(p))
    encoder = TorchvisionEncoder("shufflenet_v2_x0_5")
    encoder.network.load_state_dict(network.state_dict(), strict=False)
    network.eval()
    encoder.eval()
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.fc(encoder(image)), network(image))


@pytest.mark.parametrize("name", ["resnet18", "googlenet", "squeezenet1_1"])
def test_a_grey_image_counts_as_three_equal_channels(name):
    torch.manual_seed(0)
    rgb, grey = TorchvisionEncoder(name), TorchvisionEncoder(name, in_channels=1)
    assert grey.in_channels == 1
    state = {key: 0.05 * torch.randn_like(v) if v.is_floating_point() else v for key, v in rgb.state_dict().items()}
    state = {key: v.abs() + 0.5 if "running_var" in key else v for key, v in state.items()}
    rgb.load_state_dict(state)
    first = next(key for key, v in state.items() if v.ndim == 4)
    grey.load_state_dict({**state, first: state[first].sum(1, keepdim=True)})
    image = torch.rand(2, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(grey.eval()(image), rgb.eval()(image.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4)


def test_the_first_convolution_is_summed_over_rgb():
    torch.manual_seed(0)
    encoder = TorchvisionEncoder("resnet18", in_channels=1)
    assert encoder.network.conv1.in_channels == 1
    torch.testing.assert_close(encoder.network.conv1.weight, torch.full((64, 1, 7, 7), 0.03))


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "wide_resnet50_2"])
@pytest.mark.parametrize("in_channels", [1, 3])
def test_the_small_stem_keeps_the_resolution(name, in_channels):
    network = TorchvisionEncoder(name, in_channels, stem="small").network
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    assert network.conv1.kernel_size == (3, 3)
    assert stem(torch.rand(1, in_channels, 8, 8)).shape == (1, 64, 8, 8)


def test_other_networks_have_no_small_stem():
    with pytest.raises(ValueError, match=r"vgg11 has no small stem: use resnet\*"):
        TorchvisionEncoder("vgg11", stem="small")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet19"}, "did you mean 'resnet1"),
        ({"name": "fcn_resnet50"}, "no classification model 'fcn_resnet50' \\(did you mean"),
        ({"name": "resnet18", "in_channels": 4}, "in_channels is 4: it must be 1 or 3"),
        ({"name": "resnet18", "stem": "tiny"}, "stem is 'tiny'"),
        ({"name": "resnet18", "image_size": 64}, "takes images of any size"),
        ({"name": "resnet18", "weights": "IMAGENET1K_V9"}, "for resnet18 one of DEFAULT, IMAGENET1K_V1"),
        ({"name": "vit_b_16", "image_size": 64, "weights": "DEFAULT"}, "image_size"),
    ],
)
def test_unknown_words_are_refused_with_the_known_ones(options, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionEncoder(**options)


def test_position_embeddings_and_scales_are_listed_for_no_weight_decay():
    assert TorchvisionEncoder("vit_b_32", image_size=32).no_weight_decay() == {
        "network.class_token",
        "network.encoder.pos_embedding",
    }
    listed = TorchvisionEncoder("convnext_tiny").no_weight_decay()
    assert len(listed) == 18
    assert all(name.endswith("layer_scale") for name in listed)
