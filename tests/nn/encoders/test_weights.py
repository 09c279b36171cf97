import sys

import pytest
import torch
from torch import nn
from torchvision import models

from recipes.nn import MLP, ConvNet, ResNet, TorchvisionEncoder, ViT, load_mismatch, load_weights
from recipes.nn.encoders.torchvision import source_head

MAKERS = {
    "ResNet": lambda **o: ResNet(8, 4, **o),
    "ConvNet": lambda **o: ConvNet((4, 6), **o),
    "MLP": lambda **o: MLP(4, **o),
    "ViT": lambda **o: ViT(8, 4, 12, 1, 2, **o),
    "TorchvisionEncoder": lambda **o: TorchvisionEncoder("resnet18", stem="small", **o),
}


def randomise(module):
    for tensor in module.state_dict().values():
        tensor.copy_(torch.rand_like(tensor) if tensor.is_floating_point() else torch.full_like(tensor, 3))
    return module


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_every_encoder_loads_every_kind_of_file(tmp_path):
    for name, make in MAKERS.items():
        source = randomise(make())
        state = source.state_dict()
        checkpoint = {f"encoder.{key}": value for key, value in state.items()}
        checkpoint |= {"projector.0.weight": torch.ones(3, 3), "teacher.encoder.network.0.weight": torch.ones(1)}
        files = {
            "plain.pt": state,
            "wrapped.pth": {"state_dict": state, "epoch": 3},
            "recipe.ckpt": {"state_dict": checkpoint, "hyper_parameters": {"lr": 0.1}},
            "network.pt": source.network.state_dict(),
        }
        for file, content in files.items():
            torch.save(content, tmp_path / file)
            assert same(make(weights=str(tmp_path / file)), source), (name, file)
        assert not same(make(), source)


def test_a_network_with_a_part_called_encoder_is_not_taken_for_a_recipe(tmp_path):
    torch.manual_seed(0)
    source = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    torch.save(source.state_dict(), tmp_path / "w.pt")
    target = nn.ModuleDict({"encoder": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


def test_a_state_dict_of_torchvision_loads_from_a_file(tmp_path):
    torch.manual_seed(0)
    network = randomise(models.resnet18())
    state = {key: v for key, v in network.state_dict().items() if "num_batches_tracked" not in key}  # as in old files
    torch.save(state, tmp_path / "resnet18-0123abcd.pth")
    encoder = TorchvisionEncoder("resnet18", weights=str(tmp_path / "resnet18-0123abcd.pth"))
    assert torch.equal(encoder.network.layer4[1].conv2.weight, network.layer4[1].conv2.weight)
    assert isinstance(encoder.network.fc, nn.Identity)
    grey = TorchvisionEncoder("resnet18", 1, weights=str(tmp_path / "resnet18-0123abcd.pth"))
    torch.testing.assert_close(grey.network.conv1.weight, network.conv1.weight.sum(1, keepdim=True))


def test_weights_by_name_go_through_torchvision(tmp_path, monkeypatch):
    # a file where torchvision keeps its downloads is used without a download
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = randomise(models.squeezenet1_1())
    url = models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    for name in ("DEFAULT", "IMAGENET1K_V1"):
        encoder = TorchvisionEncoder("squeezenet1_1", weights=name)
        assert torch.equal(encoder.network.features[0].weight, network.features[0].weight)
    grey = TorchvisionEncoder("squeezenet1_1", 1, weights="DEFAULT")
    torch.testing.assert_close(grey.network.features[0].weight, network.features[0].weight.sum(1, keepdim=True))


def test_a_change_of_normalisation_for_rgb_is_left_out_for_grey(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    url = models.GoogLeNet_Weights.DEFAULT.url
    torch.save(models.googlenet(init_weights=False).state_dict(), tmp_path / "hub/checkpoints" / url.rpartition("/")[2])
    encoder = TorchvisionEncoder("googlenet", 1, weights="DEFAULT")
    assert encoder(torch.rand(2, 1, 32, 32)).shape == (2, 1024)


def test_a_missing_file_is_named():
    for make in MAKERS.values():
        with pytest.raises(FileNotFoundError, match="no file nowhere/weights.ckpt"):
            make(weights="nowhere/weights.ckpt")


def test_weights_of_another_network_are_refused_in_one_line(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": ConvNet((4, 6), 1).state_dict()}, path)
    with pytest.raises(
        ValueError, match=r"does not fit this ResNet: \d+ missing \(network\..*\); \d+ unexpected"
    ) as error:
        ResNet(8, 4, weights=str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))
    with pytest.raises(ValueError, match=r"1 of another shape \(network.0.weight \[4, 1, 3, 3\] for \[4, 3, 3, 3\]\)"):
        ConvNet((4, 6), 3, weights=str(path))


def test_a_mismatch_lists_counts_and_the_first_few():
    module = nn.Sequential(*[nn.Linear(1, 1) for _ in range(3)])
    state = {**nn.Linear(1, 1).state_dict(), "0.weight": torch.ones(2, 1), "0.bias": torch.ones(1)}
    assert load_mismatch(module, state) == (
        "4 missing (1.weight, 1.bias, 2.weight, ...); 2 unexpected (weight, bias); "
        "1 of another shape (0.weight [2, 1] for [1, 1])"
    )
    assert load_mismatch(module, module.state_dict()) == ""


class Payload:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a checkpoint was run')",)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float8_e4m3fn])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_weights_that_are_not_finite_are_refused_by_name_and_nothing_is_loaded(make, dtype, tmp_path):
    state = {name: v.to(dtype) if v.is_floating_point() else v for name, v in make().network.state_dict().items()}
    name = next(name for name, value in state.items() if value.ndim > 1)
    state[name].view(-1)[-1] = torch.nan
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w.pt has NaN or infinite elements in network.{name}: .* earlier"):
        make(weights=str(tmp_path / "w.pt"))


def test_a_head_that_is_not_finite_is_refused(tmp_path):
    network = models.resnet18()
    torch.nn.init.constant_(network.fc.weight, torch.inf)
    torch.save(network.state_dict(), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"infinite elements in fc.weight"):
        source_head("resnet18", str(tmp_path / "w.pt"))
    TorchvisionEncoder("resnet18", weights=str(tmp_path / "w.pt"))  # has no use for it


@pytest.mark.parametrize("content", [{"state_dict": {"a": Payload()}}, [1, 2], {"a": 1}, {}])
def test_files_without_weights_are_refused_and_run_nothing(content, tmp_path):
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="weights: .*w.pt"):
        load_weights(nn.Linear(1, 1), tmp_path / "w.pt")


def test_a_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "w.pt").write_text("hello")
    with pytest.raises(ValueError, match="cannot be read"):
        load_weights(nn.Linear(1, 1), tmp_path / "w.pt")


def test_timm_is_imported_only_when_used():
    assert not hasattr(sys.modules["recipes.nn.encoders.timm"], "timm")
