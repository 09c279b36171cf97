import math

import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser
from torch import nn

from recipes.nn import MLP, ConvNet, Encoder, ResNet, ViT, evaluating, projection_head


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(
    ("make", "feature_dim"),
    [
        (lambda c: ResNet(8, 4, c), 16),
        (lambda c: ConvNet((4, 6), c), 6),
        (lambda c: MLP(8, c, (12, 5)), 5),
        (lambda c: MLP(8, c, (7,), batch_norm=False), 7),
        (lambda c: ViT(8, 2, 12, 2, 3, c), 12),
        (lambda c: ViT(8, 4, 12, 1, 2, c, pool="mean"), 12),
    ],
)
def test_features_are_as_wide_as_announced_and_gradients_reach_every_parameter(make, feature_dim, in_channels):
    encoder = make(in_channels)
    assert isinstance(encoder, Encoder)
    features = encoder(torch.rand(4, in_channels, 8, 8))
    assert features.shape == (4, feature_dim)
    assert (encoder.feature_dim, encoder.in_channels) == (feature_dim, in_channels)
    features.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("encoder", [ResNet(8, 4, 1), ConvNet((4, 6, 8)), MLP(8), ViT(8, 2, 12, 2, 3, 1)])
def test_features_of_an_image_do_not_depend_on_its_batch_in_eval(encoder):
    image = torch.rand(3, 1, 8, 8)
    with evaluating(encoder), torch.no_grad():
        torch.testing.assert_close(encoder(image)[:1], encoder(image[:1]))


# He et al., 2016, Table 6: 0.27 M, 0.46 M, 0.66 M, 0.85 M; here exact, with a classifier for ten classes
@pytest.mark.parametrize(("depth", "total"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_resnets_have_the_parameters_of_the_paper(depth, total):
    encoder = ResNet(depth)
    assert encoder.feature_dim == 64
    assert count(encoder) + 64 * 10 + 10 == total
    assert sum(isinstance(m, nn.Conv2d) for m in encoder.modules()) + 1 == depth


def test_a_wide_resnet_has_four_times_its_width_as_features():
    assert ResNet(8, 32)(torch.rand(2, 3, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize(("depth", "below", "above"), [(18, 14, 20), (21, 20, 26), (2, 8, 14), (50 + 1, 50, 56)])
def test_a_depth_that_no_resnet_has_names_the_nearest(depth, below, above):
    with pytest.raises(ValueError, match=f"nearest are {below} and {above}"):
        ResNet(depth)


def test_a_resnet_follows_the_equations_of_the_paper():
    torch.manual_seed(0)
    encoder = ResNet(8, 2).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    modules = list(encoder.network)

    def normed(conv, norm, x, stride=1):
        return norm(F.conv2d(x, conv.weight, stride=stride, padding=1))

    with evaluating(encoder), torch.no_grad():
        y = normed(modules[0], modules[1], x).relu()
        for block, stride in zip(modules[3:6], (1, 2, 2)):
            shortcut = y[:, :, ::stride, ::stride]
            if stride == 2:
                shortcut = torch.cat([shortcut, torch.zeros_like(shortcut)], 1)
            inner = normed(block.conv1, block.bn1, y, stride).relu()
            y = (normed(block.conv2, block.bn2, inner) + shortcut).relu()
        torch.testing.assert_close(encoder(x), y.mean((2, 3)))


def test_convolutions_start_with_the_variance_of_he_initialisation():
    torch.manual_seed(0)
    for conv in (m for m in ResNet(8, 32).modules() if isinstance(m, nn.Conv2d)):
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * conv.out_channels)), rel=0.05)


def test_zero_init_makes_every_block_the_identity():
    encoder = ResNet(14, 2, zero_init_residual=True)
    block = encoder.network[4]
    x = torch.rand(2, 2, 4, 4)
    torch.testing.assert_close(block(x), x)
    assert not torch.allclose(ResNet(14, 2).network[4](x), x)


@pytest.mark.parametrize("size", [1, 5, 28])
def test_a_convnet_takes_images_of_any_size(size):
    assert ConvNet()(torch.rand(2, 1, size, size)).shape == (2, 128)


def test_a_vit_follows_the_equations_of_the_paper():
    torch.manual_seed(0)
    encoder = ViT(4, 2, dim=6, depth=1, heads=2, in_channels=1).double()
    net = encoder.network
    for p in encoder.parameters():
        nn.init.normal_(p, std=0.5)
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    patches = [x[:, :, r : r + 2, c : c + 2].flatten(1) for r in (0, 2) for c in (0, 2)]
    embedded = [patch @ net.patches.weight.flatten(1).T + net.patches.bias for patch in patches]
    z = torch.stack([net.class_token[0, 0].expand(3, 6), *embedded], 1) + net.position  # Equation 1
    block = net.blocks[0]
    qkv = block.qkv(block.norm1(z))
    heads = []
    for head in range(2):  # Appendix A
        q, k, v = (qkv[..., part * 6 + head * 3 : part * 6 + head * 3 + 3] for part in range(3))
        heads.append(torch.softmax(q @ k.transpose(1, 2) / math.sqrt(3), -1) @ v)
    z = z + block.project(torch.cat(heads, -1))  # Equation 2
    z = z + block.mlp[2](F.gelu(block.mlp[0](block.norm2(z))))  # Equation 3
    torch.testing.assert_close(encoder(x), net.norm(z[:, 0]))  # Equation 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 28, "patch_size": 5}, "patch_size 5 does not divide image_size 28"),
        ({"image_size": 28, "dim": 64, "heads": 3}, "heads 3 does not divide dim 64"),
        ({"image_size": 28, "depth": 0}, "depth is 0"),
        ({"image_size": 28, "pool": "max"}, "pool is 'max'"),
    ],
)
def test_sizes_that_do_not_fit_a_vit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ViT(**options)


@pytest.mark.parametrize("encoder", [MLP(8, 1), ViT(8, 4, in_channels=1)])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 8, 8)])
def test_images_of_another_size_are_refused_with_both_sizes(encoder, shape):
    with pytest.raises(ValueError, match=f"{shape[0]} × {shape[1]} × {shape[2]} .* made for 1 × 8 × 8"):
        encoder(torch.rand(2, *shape))


@pytest.mark.parametrize(
    "make",
    [lambda: ConvNet(()), lambda: ConvNet((3, 0)), lambda: MLP(8, hidden=()), lambda: MLP(0), lambda: ResNet(8, 0)],
)
def test_empty_networks_are_refused(make):
    with pytest.raises(ValueError, match="positive"):
        make()


def test_encoders_are_made_by_class_path():
    parser = ArgumentParser()
    parser.add_argument("--encoder", type=Encoder)
    parsed = parser.parse_args(["--encoder=recipes.nn.ConvNet", "--encoder.widths=[4,6]", "--encoder.in_channels=3"])
    encoder = parser.instantiate_classes(parsed).encoder
    assert isinstance(encoder, ConvNet)
    assert (encoder.feature_dim, encoder.in_channels) == (6, 3)


def test_any_network_can_be_wrapped():
    encoder = Encoder(nn.Flatten(), feature_dim=12, in_channels=3)
    assert encoder(torch.rand(2, 3, 2, 2)).shape == (2, 12)


def test_a_projection_head_has_the_layers_of_the_papers():
    def layers(**options):
        return [type(m).__name__ for m in projection_head(8, 16, 4, **options)]

    assert layers() == ["Linear", "BatchNorm1d", "ReLU", "Linear"]
    assert layers(batch_norm=False) == ["Linear", "ReLU", "Linear"]
    assert layers(layers=1) == ["Linear"]
    simclr = ["Linear", "BatchNorm1d", "ReLU"]
    assert layers(layers=3, output_batch_norm=True) == [*simclr, *simclr, "Linear", "BatchNorm1d"]
    with pytest.raises(ValueError, match="layers is 0"):
        layers(layers=0)


def test_a_projection_head_maps_features_to_its_width():
    head = projection_head(8, 16, 4, layers=3)
    assert head(torch.rand(5, 8)).shape == (5, 4)
    assert [m.out_features for m in head if isinstance(m, nn.Linear)] == [16, 16, 4]


def test_batch_norm_on_the_output_has_no_shift():
    head = projection_head(8, 16, 4, output_batch_norm=True)
    optimizer = torch.optim.SGD([p for p in head.parameters() if p.requires_grad], lr=1.0)
    (head(torch.rand(6, 8)) * torch.arange(4.0)).sum().backward()
    optimizer.step()
    torch.testing.assert_close(head(torch.rand(6, 8)).mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_evaluating_gives_every_submodule_its_mode_back():
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout().eval())

    def fail():
        with evaluating(module):
            assert not any(m.training for m in module.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert [m.training for m in module.modules()] == [True, True, False]


def test_an_mlp_leaves_out_pixels_and_units_in_training_alone():
    torch.manual_seed(0)
    encoder = MLP(8, hidden=(400, 400), batch_norm=False, dropout=0.5, input_dropout=0.2)
    shares = {}

    def note(name):
        return lambda module, args, output: shares.__setitem__(name, (output == 0)[args[0] != 0].float().mean().item())

    for number, module in enumerate(encoder.network):
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(note(number))
    encoder(torch.rand(64, 1, 8, 8) + 0.1)
    assert list(shares.values()) == pytest.approx([0.2, 0.5, 0.5], abs=0.02)
    encoder.eval()(torch.rand(64, 1, 8, 8) + 0.1)
    assert set(shares.values()) == {0.0}


@pytest.mark.parametrize("share", [{"dropout": 1.0}, {"input_dropout": -0.1}])
def test_a_share_of_units_that_is_out_of_range_is_refused(share):
    with pytest.raises(ValueError, match="must be at least 0 and below 1"):
        MLP(8, **share)
