import sys

import pytest
import torch

from recipes.nn import TimmEncoder
from recipes.optim import parameter_groups


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'training-recipes\[timm\]'"):
        TimmEncoder("resnet18")


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "feature_dim", "image_size"),
    [
        ("resnet10t", 512, None),
        ("mobilenetv3_small_050", 1024, None),
        ("test_vit", 64, 32),
        ("test_efficientnet", 256, None),
    ],
)
def test_networks_of_timm_give_features(name, feature_dim, image_size, in_channels):
    pytest.importorskip("timm")
    encoder = TimmEncoder(name, in_channels, image_size=image_size)
    assert (encoder.feature_dim, encoder.in_channels) == (feature_dim, in_channels)
    assert encoder.eval()(torch.rand(2, in_channels, 32, 32)).shape == (2, feature_dim)


def test_an_unknown_name_gets_the_nearest():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="no model 'resnet10tt' \\(did you mean 'resnet10t'\\?\\)"):
        TimmEncoder("resnet10tt")


def test_a_network_of_any_size_takes_no_image_size():
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="resnet10t takes none"):
        TimmEncoder("resnet10t", image_size=32)


def test_weights_load_from_a_file(tmp_path):
    pytest.importorskip("timm")
    source = TimmEncoder("test_resnet")
    torch.save({"state_dict": {f"encoder.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "w.ckpt")
    loaded = TimmEncoder("test_resnet", weights=str(tmp_path / "w.ckpt"))
    for a, b in zip(source.parameters(), loaded.parameters()):
        assert torch.equal(a, b)


def test_embeddings_that_timm_lists_take_no_weight_decay():
    pytest.importorskip("timm")
    encoder = TimmEncoder("test_vit", image_size=32)
    excluded = {id(p) for group in parameter_groups(encoder) if group.get("lars_exclude") for p in group["params"]}
    assert {id(encoder.network.pos_embed), id(encoder.network.cls_token)} <= excluded
