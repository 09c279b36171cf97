import pytest
import torch
from torch import nn

from recipes.nn import ResNet, TorchvisionEncoder, ViT
from recipes.optim import LARS, parameter_groups


def split(module):
    """The names of the parameters with and without weight decay."""
    names = {id(p): name for name, p in module.named_parameters()}
    decayed, excluded = [], []
    for group in parameter_groups(module):
        (excluded if group.get("lars_exclude") else decayed).extend(names[id(p)] for p in group["params"])
    return set(decayed), set(excluded)


def test_norm_layers_of_every_type_and_biases_are_excluded():
    norms = nn.ModuleDict(
        {
            "batch": nn.BatchNorm2d(4),
            "sync": nn.SyncBatchNorm(4),
            "instance": nn.InstanceNorm2d(4, affine=True),
            "layer": nn.LayerNorm(4),
            "group": nn.GroupNorm(2, 4),
            "rms": nn.RMSNorm(4),
        }
    )
    layers = nn.ModuleDict(
        {"linear": nn.Linear(4, 4), "conv": nn.Conv2d(4, 4, 3), "recurrent": nn.LSTM(4, 4), "embed": nn.Embedding(3, 4)}
    )
    layers["attention"] = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    module = nn.ModuleDict({"norms": norms, "layers": layers})
    decayed, excluded = split(module)
    assert {name for name in excluded if name.startswith("norms.")} == {
        f"norms.{n}" for n, _ in norms.named_parameters()
    }
    assert decayed == {
        "layers.linear.weight",
        "layers.conv.weight",
        "layers.embed.weight",
        "layers.recurrent.weight_ih_l0",
        "layers.recurrent.weight_hh_l0",
        "layers.attention.in_proj_weight",
        "layers.attention.out_proj.weight",
    }


def test_a_learned_scale_of_one_dimension_keeps_its_weight_decay():
    module = nn.Linear(2, 2)
    module.scale = nn.Parameter(torch.ones(2))
    assert split(module) == ({"weight", "scale"}, {"bias"})


def test_batch_norm_in_the_shortcut_of_a_resnet_is_excluded():
    encoder = TorchvisionEncoder("resnet18")
    decayed, excluded = split(encoder)
    assert "network.layer2.0.downsample.1.weight" in excluded
    assert decayed == {n for n, p in encoder.named_parameters() if p.ndim == 4}


def test_tokens_and_position_embeddings_of_transformers_are_excluded():
    decayed, excluded = split(nn.ModuleDict({"encoder": ViT(8, 4, dim=8, depth=1, heads=2)}))
    assert {"encoder.network.class_token", "encoder.network.position"} <= excluded
    assert decayed == {
        "encoder.network.patches.weight",
        *(f"encoder.network.blocks.0.{n}.weight" for n in ("qkv", "project", "mlp.0", "mlp.2")),
    }


def test_names_listed_but_absent_do_no_harm():
    module = nn.Linear(2, 2)
    module.no_weight_decay = lambda: {"weight", "cls_token"}
    assert split(module) == (set(), {"weight", "bias"})


def test_every_trainable_parameter_is_there_once_by_identity():
    encoder = ResNet(8, width=4)
    for p in encoder.network[0].parameters():
        p.requires_grad_(False)
    module = nn.ModuleList([encoder, encoder])  # shared
    found = [id(p) for group in parameter_groups(module) for p in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == {id(p) for p in encoder.parameters() if p.requires_grad}


def test_a_parameter_shared_with_an_excluded_place_is_excluded():
    linear, norm = nn.Linear(3, 1, bias=False), nn.LayerNorm(3, bias=False)
    norm.weight = linear.weight
    (group,) = parameter_groups(nn.ModuleList([linear, norm]))
    assert [id(p) for p in group["params"]] == [id(linear.weight)]
    assert group["weight_decay"] == 0


def test_a_frozen_module_has_no_groups():
    assert parameter_groups(nn.Linear(2, 2).requires_grad_(False)) == []


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False, "fused": False}])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adam])
def test_torch_optimisers_decay_the_weights_alone(make, options):
    module = nn.Linear(3, 2)
    nn.init.ones_(module.bias)
    before = module.weight.detach().clone()
    optimizer = make(parameter_groups(module), lr=0.1, weight_decay=0.5, **options)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(module.bias, torch.ones(2))
    assert not torch.equal(module.weight, before)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[1]["lars_exclude"] is True


def test_lars_adapts_the_weights_and_not_the_biases():
    module = nn.Linear(2, 1, dtype=torch.float64)
    nn.init.constant_(module.weight, 3.0)
    nn.init.constant_(module.bias, 3.0)
    optimizer = LARS(parameter_groups(module), lr=1.0, weight_decay=0.0, trust_coefficient=0.01, eps=0)
    for p in module.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    torch.testing.assert_close(module.weight.detach(), torch.full((1, 2), 3 - 0.01 * 3, dtype=torch.float64))
    assert module.bias.item() == 2.0


def test_lars_does_not_decay_excluded_parameters():
    module = nn.Linear(2, 1)
    nn.init.ones_(module.bias)
    optimizer = LARS(parameter_groups(module), lr=1.0, weight_decay=0.5)
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert module.bias.item() == 1.0
