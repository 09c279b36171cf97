"""Weights as other programs store them: each layout is built from the source network by the names that program uses."""

import argparse
import itertools
import json
import logging
import pickle
import re
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DataParallel

from recipes import load
from recipes.nn import ConvNet, Encoder, TimmEncoder, TorchvisionEncoder, ViT, load_weights
from recipes.nn.encoders.files import read_weights
from recipes.nn.encoders.weights import resized_positions

LOGGER = "lightning.pytorch.utilities.rank_zero"


class Small(nn.Module):
    """A network whose parts are named as in torchvision's ResNet, small enough for a table of files."""

    def __init__(self, width=4, blocks=2, channels=3, classes=None):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*[nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks)])
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Identity() if classes is None else nn.Linear(width, classes)

    def forward(self, x):
        return self.fc(self.avgpool(self.layer1(self.relu(self.bn1(self.conv1(x))))).flatten(1))


def randomised(network, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.1)
    return network.eval()


def encoder(width=4, blocks=2, channels=3):
    return Encoder(randomised(Small(width, blocks, channels), seed=9), width, channels)


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def features(network, channels=3, size=8):
    image = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return network.eval()(image)


@pytest.fixture
def said(caplog):
    """What loading says, one line for each file."""
    caplog.set_level(logging.INFO, LOGGER)
    return lambda: [record.getMessage() for record in caplog.records if record.getMessage().startswith("weights: ")]


PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "backbone.",
    "encoder.",
    "model.",
    "student.",
    "teacher.",
    "momentum_encoder.",
    "encoder_q.",
    "module.encoder_q.",
    "module.base_encoder.",
    "module.backbone.",
    "_orig_mod.module.",
    "module._orig_mod.",
    "model.encoder.",
    "network.",
    "encoder.network.",
    "model.backbone._orig_mod.",
    "classy_state_dict.base_model.model.trunk._feature_blocks.",
]
CONTAINERS = [None, "state_dict", "model", "teacher", "student", "model_ema", "state_dict_ema"]
HEADS = {"none": {}, "other size": {"fc.weight": torch.ones(7, 4), "fc.bias": torch.ones(7)}}
FORMATS = ["pt", "pth", "ckpt", "safetensors"]


def write(path, state, container):
    content = {name: value.clone() for name, value in state.items()}
    if path.suffix == ".safetensors":
        save_file(prefixed(f"{container}." if container else "", content), path)
    else:
        torch.save({container: content, "epoch": 3, "optimizer": {"state": {}}} if container else content, path)


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_prefix_container_format_and_head_gives_the_features_of_the_source(prefix, tmp_path, said):
    source = randomised(Small())
    expected = features(source)
    for number, (container, head, form) in enumerate(itertools.product(CONTAINERS, HEADS, FORMATS)):
        if head != "none" and prefix == "encoder.network.":
            continue  # a recipe has its head beside the encoder
        path = tmp_path / f"{number}.{form}"
        write(path, prefixed(prefix, {**source.state_dict(), **HEADS[head]}), container)
        loaded = encoder()
        load_weights(loaded, path)
        assert torch.equal(features(loaded), expected), (container, head, form)
        line = said()[-1]
        assert ("left out fc (2 tensors)" in line) == (head != "none")
        assert "took 10 of 10 tensors" in line
        assert "nothing is missing" in line


def moco(source, other):  # facebookresearch/moco: main_moco.py, main_lincls.py
    mlp = {"fc.0.weight": torch.ones(4, 4), "fc.0.bias": torch.ones(4), "fc.2.weight": torch.ones(3, 4)}
    state = prefixed("module.encoder_q.", {**source, **mlp}) | prefixed("module.encoder_k.", {**other, **mlp})
    state |= {"module.queue": torch.ones(3, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {"state": {0: torch.ones(1)}}}


def moco_v3(source, other):
    state = prefixed("module.base_encoder.", {**source, "fc.0.weight": torch.ones(2, 4)})
    return {"state_dict": state | prefixed("module.momentum_encoder.", {**other, "fc.0.weight": torch.ones(2, 4)})}


def dino(source, other):  # facebookresearch/dino: main_dino.py
    head = {"module.head.mlp.0.weight": torch.ones(2, 4), "module.head.last_layer.weight_g": torch.ones(2, 1)}
    return {
        "student": {**prefixed("module.backbone.", other), **head},
        "teacher": {**prefixed("module.backbone.", source), **head},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]},
        "args": argparse.Namespace(arch="resnet50"),
        "dino_loss": {"center": torch.ones(1, 2)},
    }


def torchvision_reference(source, other):  # pytorch/vision: references/classification/train.py
    head = {"fc.weight": torch.ones(5, 4), "fc.bias": torch.ones(5)}
    averaged = {"n_averaged": torch.tensor(3), **prefixed("module.", {**source, **head})}
    return {"model": {**other, **head}, "model_ema": averaged, "args": argparse.Namespace(lr=0.5), "epoch": 3}


def timm_training(source, other):  # timm: utils/checkpoint_saver.py
    head = {"fc.weight": torch.ones(5, 4), "fc.bias": torch.ones(5)}
    return {
        "arch": "resnet18",
        "state_dict": OrderedDict({**other, **head}),
        "state_dict_ema": OrderedDict({**source, **head}),
        "args": argparse.Namespace(model="resnet18"),
    }


def solo_learn(source, other):
    state = prefixed("backbone.", source) | prefixed("momentum_backbone.", other)
    state |= {"classifier.weight": torch.ones(10, 4), "projector.0.weight": torch.ones(4, 4)}
    state |= {"momentum_projector.0.weight": torch.ones(4, 4), "queue": torch.ones(2, 3)}
    return {"state_dict": state, "hyper_parameters": {"method": "mocov2plus"}, "pytorch-lightning_version": "2.1.2"}


def solo_learn_of_2021(source, other):
    return {"state_dict": prefixed("encoder.", source) | prefixed("momentum_encoder.", other)}


def lightly(source, other):  # its examples: nn.Sequential(*list(resnet.children())[:-1])
    state = prefixed("backbone.", numbered(source)) | prefixed("backbone_momentum.", numbered(other))
    state |= {"projection_head.layers.0.weight": torch.ones(4, 4), "criterion.memory_bank.bank": torch.ones(3, 4)}
    return {"state_dict": state, "epoch": 1, "global_step": 5, "callbacks": {}, "loops": {"fit_loop": {}}}


def lightly_dino(source, other):
    return {
        "state_dict": prefixed("student_backbone.", numbered(other)) | prefixed("teacher_backbone.", numbered(source))
    }


def mmpretrain(source, other):  # MMEngine's hook swaps: the average is in state_dict
    state = prefixed("backbone.", source) | {"neck.fc0.weight": torch.ones(4, 4), "head.fc.weight": torch.ones(5, 4)}
    state |= {"target_net.module.0." + name: value for name, value in other.items()}
    averaged = {"steps": torch.tensor(3), **prefixed("module.backbone.", other)}
    return {"meta": {"epoch": 3, "dataset_meta": {"classes": ["a"]}}, "state_dict": state, "ema_state_dict": averaged}


def vissl(source, other):
    trunk = {"_feature_blocks." + name: value for name, value in source.items()}
    return {"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": {"0.weight": torch.ones(2, 4)}}}}}


def byol_pytorch(source, other):
    state = prefixed("online_encoder.net.", source) | prefixed("target_encoder.net.", other)
    return {"model": state | {"online_predictor.net.0.weight": torch.ones(4, 4)}}


def numbered(state):
    order = ["conv1", "bn1", "relu", "layer1", "avgpool", "fc"]
    return {
        ".".join([str(order.index(part)), *rest]): v
        for (part, *rest), v in ((n.split("."), v) for n, v in state.items())
    }


LAYOUTS = {
    "moco": (moco, "encoder_q", "encoder_k"),
    "moco v3": (moco_v3, "base_encoder", "momentum_encoder"),
    "dino": (dino, "teacher", "student"),
    "torchvision references": (torchvision_reference, "model_ema", "model"),
    "timm": (timm_training, "state_dict_ema", "state_dict"),
    "solo-learn": (solo_learn, "backbone", "momentum_backbone"),
    "solo-learn of 2021": (solo_learn_of_2021, "encoder", "momentum_encoder"),
    "lightly": (lightly, "backbone", "backbone_momentum"),
    "lightly's DINO": (lightly_dino, "teacher_backbone", "student_backbone"),
    "mmpretrain": (mmpretrain, "state_dict.backbone", "target_net"),
    "vissl": (vissl, "trunk", None),
    "byol": (byol_pytorch, "online_encoder", "target_encoder"),
}


@pytest.mark.parametrize("program", LAYOUTS)
def test_a_checkpoint_of_another_program_gives_its_network_and_any_other_by_name(program, tmp_path, said):
    layout, preferred, other = LAYOUTS[program]
    networks = randomised(Small(), 0), randomised(Small(), 1)
    path = tmp_path / "checkpoint.pth"
    torch.save(layout(*(network.state_dict() for network in networks)), path)
    for choice, network in (("", networks[0]), (f"#{preferred}", networks[0]), (other and f"#{other}", networks[1])):
        if choice is None:
            continue
        loaded = encoder()
        load_weights(loaded, f"{path}{choice}")
        assert torch.equal(features(loaded), features(network)), choice
    assert (other is None) or other in said()[0]  # named as not chosen


def test_networks_of_equal_rank_are_not_guessed_between(tmp_path):
    path = tmp_path / "two.pt"
    torch.save({**prefixed("left.", Small().state_dict()), **prefixed("right.", Small().state_dict())}, path)
    with pytest.raises(ValueError, match=r"holds 2 networks that fit \(left, right\): choose one by .*two.pt#NAME"):
        load_weights(encoder(), path)
    with pytest.raises(ValueError, match="has no part named middle: it has left, right"):
        load_weights(encoder(), f"{path}#middle")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Small(blocks=3), r"2 unexpected \(layer1.2.weight, layer1.2.bias\)$"),  # a deeper network has all names
        (
            Small(blocks=1),
            r"2 missing \(network.layer1.1.weight, network.layer1.1.bias\); 1 unexpected \(head.weight\)$",
        ),
        (Small(width=5), r"of another shape \(network.conv1.weight \[5, 3, 3, 3\] for \[4, 3, 3, 3\]"),
        (Small(channels=1), r"1 of another shape \(network.conv1.weight \[4, 1, 3, 3\] for \[4, 3, 3, 3\]\)"),
        (ConvNet((4, 6), 3), r"9 missing .*no conv1.weight|\d+ missing \(network.conv1.weight"),
    ],
)
def test_weights_of_another_network_are_refused_with_the_names_that_differ(source, words, tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"model": prefixed("module.", {**source.state_dict(), "head.weight": torch.ones(2, 4)})}, path)
    loaded = encoder()
    before = features(loaded)
    with pytest.raises(ValueError, match=words) as error:
        load_weights(loaded, path)
    assert "\n" not in str(error.value)
    assert torch.equal(features(loaded), before)
    assert not loaded.pretrained


def test_a_renamed_layer_is_an_error_that_names_the_nearest(tmp_path):
    state = {name.replace("bn1", "norm1"): value for name, value in Small().state_dict().items()}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"the file has no bn1.weight \(did you mean 'norm1.weight'\?\)"):
        load_weights(encoder(), tmp_path / "w.pt")


def test_rgb_weights_of_any_encoder_are_summed_for_grey_images(tmp_path, said):
    source = randomised(Small())
    torch.save({"model": source.state_dict()}, tmp_path / "w.pt")
    grey = encoder(channels=1)
    load_weights(grey, tmp_path / "w.pt")
    image = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(grey.eval()(image), source(image.expand(-1, 3, -1, -1)))
    assert "summed network.conv1.weight over RGB" in said()[-1]


def test_objects_of_unknown_classes_are_left_out_and_run_nothing(tmp_path):
    class Hub(dict):
        pass

    class Buffer:
        def __init__(self):
            self.values = [1, 2]

        def __reduce__(self):
            return exec, ("raise SystemExit('code in a checkpoint was run')",)

    import tests.nn.encoders.test_foreign_weights as here  # pickle asks for importable classes

    here.Hub, here.Buffer = Hub, Buffer
    for each in (Hub, Buffer):
        each.__module__, each.__qualname__ = here.__name__, each.__name__
    source = randomised(Small())
    content = {"state_dict": source.state_dict(), "args": argparse.Namespace(a=1), "buffer": Buffer(), "hub": Hub(a=1)}
    for legacy in (False, True):
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=not legacy)
        loaded = encoder()
        load_weights(loaded, tmp_path / "w.pth")
        assert torch.equal(features(loaded), features(source))


def test_a_network_that_was_saved_whole_gives_its_weights(tmp_path):
    source = randomised(Small(classes=3))
    for number, content in enumerate((source, {"model": DataParallel(source), "epoch": 3})):
        path = tmp_path / f"{number}.pt"
        torch.save(content, path)
        loaded = encoder()
        load_weights(loaded, path)
        headless = nn.Sequential(*list(source.children())[:-1], nn.Flatten())
        assert torch.equal(features(loaded), features(headless))


@pytest.mark.parametrize("size", [0, 5, 30, 200, 100_000])
def test_a_damaged_file_is_an_error_in_one_line(size, tmp_path):
    for name in ("w.pt", "w.safetensors"):
        path = tmp_path / name
        write(path, Small().state_dict(), None)
        content = path.read_bytes()
        path.write_bytes(content[: min(size, len(content) - 1)])
        with pytest.raises(ValueError, match="cannot be read as tensors and plain values|holds no state_dict") as error:
            load_weights(encoder(), path)
        assert "\n" not in str(error.value)


def cut(path):
    torch.save(Small().state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])


UNREADABLE = {
    "a Git LFS pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "a web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>404</html>"), "it is a web page"),
    "an empty file": (lambda path: path.write_bytes(b""), "it is empty"),
    "a file cut off": (cut, "it is cut off or damaged"),
    "TorchScript": (lambda path: torch.jit.script(nn.Linear(2, 2)).save(path), "it is a TorchScript program"),
    "text": (lambda path: path.write_text("hello"), "it is no file of torch.save"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(print)), ""),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("read", [read_weights, load], ids=["weights", "checkpoint"])
@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_file_of_another_kind_is_called_by_its_name(kind, read, tmp_path):
    make, words = UNREADABLE[kind]
    make(path := tmp_path / "w.pt")
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        read(path)
    assert words in str(error.value)
    assert not re.search("weights_only|Re-running|\n", str(error.value))


def test_dictionaries_in_themselves_and_names_without_tensors_end(tmp_path):
    content = {}
    content |= {str(number): content for number in range(20)}
    for _ in range(100):
        content = {"a": content}
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match="holds no state_dict"):
        load_weights(encoder(), tmp_path / "w.pt")


# Position embeddings


def test_positions_are_resized_as_timm_does():
    timm = pytest.importorskip("timm.layers")
    for tokens, old, new in ((0, 4, 7), (1, 14, 16), (1, 4, 2), (2, 3, 5)):
        positions = torch.randn(1, tokens + old**2, 6)
        expected = timm.resample_abs_pos_embed(positions, [new, new], num_prefix_tokens=tokens)
        assert torch.equal(resized_positions(positions, tokens + new**2), expected)
    assert resized_positions(torch.randn(1, 17, 6), 49) is None  # with a class token and without


@pytest.mark.parametrize("pool", ["token", "mean"])
def test_a_vit_takes_the_weights_of_one_for_images_of_another_size(pool, tmp_path, said):
    timm = pytest.importorskip("timm.layers")
    source = randomised(ViT(16, 4, 12, 2, 2, pool=pool))
    torch.save({"model": prefixed("module.", source.state_dict())}, tmp_path / "w.pt")
    larger = ViT(24, 4, 12, 2, 2, pool=pool, weights=str(tmp_path / "w.pt"))
    tokens = 1 if pool == "token" else 0
    expected = timm.resample_abs_pos_embed(source.network.position, [6, 6], num_prefix_tokens=tokens)
    assert torch.equal(larger.network.position, expected)
    assert f"resized network.position from {16 + tokens} to {36 + tokens}" in said()[-1]
    other = "mean" if pool == "token" else "token"
    with pytest.raises(ValueError, match="class_token"):
        ViT(24, 4, 12, 2, 2, pool=other, weights=str(tmp_path / "w.pt"))


def test_torchvisions_vit_takes_the_weights_of_one_for_images_of_another_size(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    from timm.layers import resample_abs_pos_embed
    from torchvision import models

    source = models.VisionTransformer(32, 16, 2, 2, 8, 16)
    monkeypatch.setattr(
        models, "get_model", lambda name, image_size=32, **_: models.VisionTransformer(image_size, 16, 2, 2, 8, 16)
    )
    torch.save({"model": source.state_dict()}, tmp_path / "w.pth")
    loaded = TorchvisionEncoder("vit_b_16", weights=str(tmp_path / "w.pth"), image_size=64)
    expected = resample_abs_pos_embed(source.encoder.pos_embedding.detach(), [4, 4])
    assert torch.equal(loaded.network.encoder.pos_embedding, expected)


def test_timms_vit_takes_masked_autoencoders_and_dinos_weights(tmp_path, said):
    timm = pytest.importorskip("timm")
    source = randomised(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=32))
    state = source.state_dict()
    decoder = {"mask_token": torch.ones(1, 1, 8), "decoder_pos_embed": torch.ones(1, 5, 8)}
    decoder |= {"decoder_blocks.0.norm1.weight": torch.ones(8), "decoder_embed.weight": torch.ones(8, 192)}
    files = {
        "mae.pth": {"model": {**state, **decoder}, "args": argparse.Namespace(mask_ratio=0.75)},
        "dino.pth": {"student": prefixed("module.backbone.", state), "teacher": prefixed("backbone.", state)},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        network = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=32)
        loaded = Encoder(network, 192)
        load_weights(loaded, tmp_path / name)
        assert torch.equal(features(loaded, size=32), features(source, size=32)), name
        larger = Encoder(timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=64), 192)
        load_weights(larger, tmp_path / name)
        expected = timm.layers.resample_abs_pos_embed(state["pos_embed"], [4, 4])
        assert torch.equal(larger.network.pos_embed, expected)
    assert "left out mask_token (1 tensors)" in said()[0]


def facebooks_names(state):
    """timm's names of a ConvNeXt as in facebookresearch/ConvNeXt, from which timm converts them."""
    names = {"stem.0": "downsample_layers.0.0", "stem.1": "downsample_layers.0.1", "head.norm": "norm"}
    new = {}
    for name, value in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs) if name.startswith(ours) else name
        name = re.sub(r"stages\.(\d)\.downsample\.(\d)", lambda m: f"downsample_layers.{m[1]}.{m[2]}", name)
        name = re.sub(r"stages\.(\d)\.blocks\.(\d)", r"stages.\1.\2", name)
        name = name.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        new[name] = value
    return new


def test_timm_converts_the_names_of_the_programs_that_it_knows(tmp_path, said):
    pytest.importorskip("timm")
    source = TimmEncoder("convnext_atto")
    state = facebooks_names(randomised(source.network).state_dict())
    assert len(state.keys() & source.network.state_dict().keys()) < 3
    for number, prefix in enumerate(("", "module.")):
        torch.save({"model": prefixed(prefix, state), "args": argparse.Namespace()}, tmp_path / f"{number}.pth")
        loaded = TimmEncoder("convnext_atto", weights=str(tmp_path / f"{number}.pth"))
        assert torch.equal(features(loaded, size=32), features(source, size=32))
        assert "converted the names by timm" in said()[-1]


def test_a_stem_for_small_images_is_taken_where_it_is_in_the_file_and_else_random(tmp_path, said):
    source = TorchvisionEncoder("resnet18", stem="small")  # solo-learn trains such a stem on CIFAR
    torch.save({"state_dict": prefixed("backbone.", source.network.state_dict())}, tmp_path / "small.ckpt")
    loaded = TorchvisionEncoder("resnet18", stem="small", weights=str(tmp_path / "small.ckpt"))
    assert torch.equal(loaded.network.conv1.weight, source.network.conv1.weight)
    assert "nothing is missing" in said()[-1]
    standard = TorchvisionEncoder("resnet18").network.state_dict()
    torch.save({"state_dict": prefixed("backbone.", standard)}, tmp_path / "standard.ckpt")
    loaded = TorchvisionEncoder("resnet18", stem="small", weights=str(tmp_path / "standard.ckpt"))
    assert torch.equal(loaded.network.layer4[1].conv2.weight, standard["layer4.1.conv2.weight"])
    assert "network.conv1.weight keeps its random weights" in said()[-1]
    with pytest.raises(ValueError, match=r"conv1.weight \[64, 3, 3, 3\] for \[64, 3, 7, 7\]"):
        TorchvisionEncoder("resnet18", weights=str(tmp_path / "small.ckpt"))


def test_a_classifier_of_torchvision_in_any_container_is_a_teacher(tmp_path):
    from torchvision import models

    from recipes.distillation import teacher_from

    source = randomised(models.mobilenet_v3_small(num_classes=7))
    content = {"model_ema": prefixed("module.", source.state_dict()), "args": argparse.Namespace(), "epoch": 1}
    torch.save(content, tmp_path / "model_1.pth")
    teacher = teacher_from(f"torchvision:mobilenet_v3_small:{tmp_path / 'model_1.pth'}")
    image = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(part)[:, None, None] for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    with torch.no_grad():
        torch.testing.assert_close(teacher(image), source((image - mean) / std))


# Hugging Face and the normalisation of the images


def test_a_folder_of_hugging_face_gives_weights_and_normalisation(tmp_path):
    timm = pytest.importorskip("timm")
    source = randomised(timm.create_model("resnet10t", num_classes=3))
    snapshot = tmp_path / "models--timm--resnet10t.c3_in1k" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    known = {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.25, 0.2], "num_classes": 3}
    config = {"architecture": "resnet10t", "num_classes": 3, "pretrained_cfg": known}
    (snapshot / "config.json").write_text(json.dumps(config))
    for file in ("pytorch_model.bin", "model.safetensors"):
        write(snapshot / file, source.state_dict(), None) if file.endswith("s") else torch.save(
            source.state_dict(), snapshot / file
        )
        source.reset_classifier(0)
        for folder in (snapshot, snapshot.parents[1]):
            loaded = TimmEncoder("resnet10t", weights=str(folder))
            assert torch.equal(features(loaded, size=32), features(source, size=32))
            assert loaded.normalization == ((0.5, 0.4, 0.3), (0.25, 0.25, 0.2))
        (snapshot / file).unlink()
    with pytest.raises(FileNotFoundError, match="has a config.json, but none of model.safetensors"):
        TimmEncoder("resnet10t", weights=str(snapshot))
    write(snapshot / "model.safetensors", source.state_dict(), None)
    with pytest.raises(ValueError, match="the folder is of resnet10t"):
        TimmEncoder("resnet14t", weights=str(snapshot))


@pytest.mark.parametrize(("mean", "known"), [([0.5] * 3, True), ([127.5] * 3, False), ([0.5] * 2, False)])
def test_a_normalisation_in_the_file_counts_if_it_is_of_images_in_0_to_1(mean, known, tmp_path):
    layer = {"normalize.mean": torch.tensor(mean).view(1, -1, 1, 1), "normalize.std": torch.full((len(mean),), 0.25)}
    torch.save(prefixed("module.", {**prefixed("backbone.", Small().state_dict()), **layer}), tmp_path / "w.pt")
    loaded = encoder()
    load_weights(loaded, tmp_path / "w.pt")
    assert loaded.normalization == (((0.5,) * 3, (0.25,) * 3) if known else None)


def test_a_download_of_torchvision_is_known_by_its_name(tmp_path):
    from torchvision import models

    path = tmp_path / models.SqueezeNet1_1_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.save(models.squeezenet1_1().state_dict(), path)
    known = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert TorchvisionEncoder("squeezenet1_1", weights=str(path)).normalization == known
    path.rename(tmp_path / "mine.pth")
    mine = {"name": "squeezenet1_1", "weights": str(tmp_path / "mine.pth")}
    assert TorchvisionEncoder(**mine).normalization is None
    assert TorchvisionEncoder(**mine, normalization="imagenet").normalization == known
    assert TorchvisionEncoder(**mine, normalization="imagenet").fresh().normalization is None
    with pytest.raises(ValueError, match="normalization is 'cifar': it must be 'imagenet', or null"):
        TorchvisionEncoder(**mine, normalization="cifar")


def test_a_path_may_begin_with_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    source = randomised(Small())
    torch.save(source.state_dict(), tmp_path / "w#1.pt")  # a file whose own name has the mark of a choice
    loaded = encoder()
    load_weights(loaded, "~/w#1.pt")
    assert torch.equal(features(loaded), features(source))


@pytest.mark.slow
def test_one_command_probes_a_checkpoint_of_another_program(tmp_path):
    from recipes.cli import main

    source = randomised(ConvNet((4, 8)))
    state = prefixed("module.encoder_q.", source.network.state_dict())
    torch.save({"state_dict": {**state, "module.queue": torch.ones(2)}, "arch": "x"}, tmp_path / "moco.pth.tar")
    short = ["--trainer.max_epochs", "1", "--runs", str(tmp_path / "runs"), "--trainer.limit_test_batches", "0"]
    short += [
        "--trainer.accelerator",
        "cpu",
        "--trainer.enable_progress_bar",
        "false",
        "--model.encoder.widths",
        "[4,8]",
    ]
    weights = ["--model.encoder.weights", str(tmp_path / "moco.pth.tar")]
    main(["fit", "--config", "linear-probe-digits", *weights, *short, "--trainer.limit_val_batches", "0"])
    (run,) = (tmp_path / "runs").glob("*/*")
    encoder = load(run).encoder
    torch.testing.assert_close(features(encoder, 1), features(source, 1))
