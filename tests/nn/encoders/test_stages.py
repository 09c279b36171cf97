import pytest
import torch
import yaml
from torch import nn

from recipes.nn import MLP, ConvNet, Encoder, ResNet, TorchvisionEncoder, ViT, stage_features, stage_of_state, stages


def layers(encoder):
    return [stage.name for stage in stages(encoder)]


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        (ResNet(14), ["0", "3", "5", "7"]),
        (ConvNet((4, 5, 6)), ["0", "4", "8"]),
        (MLP(4, hidden=(3, 2)), ["0", "4"]),
        (ViT(8, dim=12, depth=2), ["patches", "blocks.0", "blocks.1"]),
        (TorchvisionEncoder("resnet18"), ["conv1", "layer1", "layer2", "layer3", "layer4"]),
        (TorchvisionEncoder("regnet_y_400mf"), ["stem", *(f"trunk_output.block{n}" for n in range(1, 5))]),
        (TorchvisionEncoder("convnext_tiny"), [f"features.{n}" for n in range(8)]),
        (
            TorchvisionEncoder("vit_b_32"),
            ["conv_proj", *(f"encoder.layers.encoder_layer_{n}" for n in range(12))],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_stages_are_the_parts_of_a_network(encoder, expected):
    assert layers(encoder) == expected


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "vit_b_32", "swin_t", "mobilenet_v3_small", "maxvit_t"])
def test_every_entry_of_the_state_belongs_to_one_stage_and_stages_follow_each_other(name):
    encoder = TorchvisionEncoder(name)
    stage = stage_of_state(encoder)
    assert stage.keys() == encoder.state_dict().keys()
    inside = {f"{layer}." for each in stages(encoder) for layer in each.layers}
    outside = [key for key in stage if not key.startswith(tuple(inside))]
    assert all("class_token" in key or "pos_embedding" in key for key in outside)
    assert all(stage[key] == 0 for key in outside)
    numbers = [number for key, number in stage.items() if key not in outside]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(len(stages(encoder))))


def test_features_of_a_stage_are_the_mean_of_its_output():
    encoder = ResNet(14, width=4).eval()
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        found = stage_features(encoder, image)
        parts = [encoder.network[:3], encoder.network[:5], encoder.network[:7]]
        expected = [part(image).mean((2, 3)) for part in parts] + [encoder(image)]
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


def test_features_of_a_transformer_are_means_over_tokens_with_channels_last_in_swin():
    vit = ViT(8, dim=12, depth=2).eval()
    image = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        found = stage_features(vit, image)
        assert torch.allclose(found[0], vit.network.patches(image).mean((2, 3)))
        assert [feature.shape for feature in found] == [(2, 12)] * 3
        swin = TorchvisionEncoder("swin_t").eval()
        found = stage_features(swin, torch.randn(1, 3, 64, 64))
        assert [feature.shape[1] for feature in found] == [96, 96, 192, 192, 384, 384, 768, 768]


def test_hooks_are_gone_afterwards_even_after_an_error():
    encoder = ViT(8, dim=12, depth=2)
    with pytest.raises(ValueError, match="was made for"):
        stage_features(encoder, torch.zeros(1, 3, 9, 9))
    stage_features(encoder, torch.zeros(1, 3, 8, 8))
    assert not any(module._forward_hooks for module in encoder.modules())


def test_a_network_without_parts_is_one_stage():
    encoder = Encoder(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), 2, 1)
    assert len(stages(encoder)) == 1
    assert len(stage_features(encoder, torch.zeros(1, 1, 2, 2))) == 1


def test_a_fresh_encoder_has_the_same_form_and_other_weights(tmp_path):
    torch.save(ConvNet((4, 5), 3, norm="group").state_dict(), tmp_path / "weights.pt")
    encoder = ConvNet((4, 5), 3, norm="group", weights=str(tmp_path / "weights.pt"))
    fresh = encoder.fresh()
    assert encoder.pretrained
    assert not fresh.pretrained
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    assert not torch.equal(fresh.network[0].weight, encoder.network[0].weight)
    small = TorchvisionEncoder("resnet18", in_channels=1, stem="small").fresh()
    assert small.network.conv1.weight.shape == (64, 1, 3, 3)


def test_weights_of_a_run_bring_what_its_images_were_normalised_by(tmp_path):
    from recipes import Supervised

    recipe = Supervised(ConvNet((4, 5)), 10)
    recipe.normalize.set((0.25,), (0.5,))
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": recipe.state_dict()}, tmp_path / "checkpoints" / "last.ckpt")
    encoder = ConvNet((4, 5), weights=str(tmp_path))  # the directory of the run
    assert encoder.normalization == ((0.25,) * 3, (0.5,) * 3)
    assert torch.equal(encoder.network[0].weight, recipe.encoder.network[0].weight)
    torch.save(recipe.encoder.state_dict(), tmp_path / "encoder.pt")
    assert ConvNet((4, 5), weights=str(tmp_path / "encoder.pt")).normalization is None


def test_null_weights_on_the_command_line_are_none(capsys):
    from recipes.cli import main

    with pytest.raises(SystemExit):
        main(["fit", "--config", "finetune-folder", "--model.encoder.weights", "null", "--print_config"])
    given = yaml.safe_load(capsys.readouterr().out)["model"]["init_args"]["encoder"]["init_args"]["weights"]
    assert not TorchvisionEncoder("resnet18", weights=given).pretrained
    assert not ConvNet(weights=given).pretrained
