import math

import pytest
import torch
from jsonargparse import ArgumentParser
from scipy import stats
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from recipes.nn import DistilledViT, Encoder, ViT, stage_of_state, stages
from recipes.optim import parameter_groups

SMALL = {"image_size": 8, "patch_size": 4, "dim": 12, "depth": 2, "heads": 3, "in_channels": 1}


def tokens(**options):
    torch.manual_seed(0)
    return ViT(**{**SMALL, "pool": "tokens", **options})


def test_class_and_distillation_token_follow_the_equations_side_by_side():
    encoder = tokens(dim=6, heads=2, depth=1).double()
    for p in encoder.parameters():
        nn.init.normal_(p, std=0.5)
    net, x = encoder.network, torch.randn(3, 1, 8, 8, dtype=torch.float64)
    expected = []
    for image in x[:, 0]:
        patches = [image[r : r + 4, c : c + 4].flatten() for r in (0, 4) for c in (0, 4)]
        embedded = [net.patches.weight.flatten(1) @ patch + net.patches.bias for patch in patches]
        z = torch.stack([net.class_token.flatten(), net.distillation_token.flatten(), *embedded]) + net.position[0]
        block, attended = net.blocks[0], torch.zeros(6, 6, dtype=torch.float64)
        q, k, v = block.qkv(block.norm1(z)).split(6, 1)
        for head in (slice(0, 3), slice(3, 6)):
            for i in range(6):  # 2 tokens and 4 patches, each attends to all
                weight = torch.softmax(torch.stack([q[i, head] @ k[j, head] for j in range(6)]) / math.sqrt(3), 0)
                attended[i, head] = sum(weight[j] * v[j, head] for j in range(6))
        z = z + block.project(attended)
        z = z + block.mlp[2](F.gelu(block.mlp[0](block.norm2(z))))
        expected.append(torch.cat([net.norm(z[0]), net.norm(z[1])]))
    assert encoder.feature_dim == 12
    torch.testing.assert_close(encoder(x), torch.stack(expected))


@pytest.mark.parametrize("in_channels", [1, 3])
def test_gradients_reach_every_parameter_of_two_tokens(in_channels):
    encoder = tokens(in_channels=in_channels)
    feature = encoder(torch.rand(4, in_channels, 8, 8))
    assert feature.shape == (4, 24)
    feature.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in encoder.parameters())


def test_the_two_tokens_differ_from_the_start():
    first, second = tokens()(torch.rand(4, 1, 8, 8)).chunk(2, 1)
    assert (first - second).abs().mean() > 0.01


def test_the_other_ways_to_pool_have_the_weights_that_they_had():
    blocks = [f"blocks.{n}" for n in range(2)]
    parts = ["norm1", "qkv", "project", "norm2", "mlp.0", "mlp.2"]
    layers = ["patches", *(f"{block}.{part}" for block in blocks for part in parts), "norm"]
    names = {f"network.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    added = {"mean": [], "token": ["class_token"], "tokens": ["class_token", "distillation_token"]}
    for pool, embeddings in added.items():
        state = ViT(**SMALL, pool=pool).state_dict()
        assert state.keys() == names | {f"network.{name}" for name in (*embeddings, "position")}
        assert state["network.position"].shape == (1, 4 + len(embeddings), 12)


# Those of the published networks, which Table 1 rounds to 5 M, 22 M and 86 M (with one token)
@pytest.mark.parametrize(
    ("name", "one_token", "two_tokens"),
    [
        ("deit_tiny", 5_717_416, 5_910_800),
        ("deit_small", 22_050_664, 22_436_432),
        ("deit_base", 86_567_656, 87_338_192),
    ],
)
def test_deit_has_the_parameters_of_the_paper(name, one_token, two_tokens):
    with torch.device("meta"):
        for pool, total in (("token", one_token), ("tokens", two_tokens)):
            encoder = DistilledViT(name, pool=pool)
            number = 2 if pool == "tokens" else 1
            d = encoder.feature_dim // number
            block = 4 * d * d + 4 * d + 8 * d * d + 5 * d + 4 * d  # attention, MLP, two norms
            closed = (3 * 16 * 16 + 1) * d + (196 + number) * d + number * d + 12 * block + 2 * d
            assert sum(p.numel() for p in encoder.parameters()) == closed
            assert closed + number * 1000 * (d + 1) == total  # a head for each token
            assert {m.heads for m in encoder.modules() if hasattr(m, "heads")} == {d // 64}


def test_an_unknown_deit_names_the_nearest():
    with pytest.raises(ValueError, match="name is 'deit_smal' \\(did you mean 'deit_small'\\?\\): it must be one of"):
        DistilledViT("deit_smal")
    with pytest.raises(ValueError, match="patch_size 16 does not divide image_size 40"):
        DistilledViT(image_size=40)


def test_a_small_deit_is_made_from_the_command_line_and_anew():
    parser = ArgumentParser()
    parser.add_argument("--encoder", type=Encoder)
    given = ["--encoder=recipes.nn.DistilledViT", "--encoder.image_size=8", "--encoder.patch_size=4"]
    encoder = parser.instantiate_classes(parser.parse_args([*given, "--encoder.in_channels=1"])).encoder
    assert encoder(torch.rand(2, 1, 8, 8)).shape == (2, 384)
    fresh = encoder.fresh()
    assert type(fresh) is DistilledViT
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in encoder.state_dict().items()}
    assert not torch.equal(fresh.network.position, encoder.network.position)
    assert [stage.name for stage in stages(encoder)] == ["patches", *(f"blocks.{n}" for n in range(12))]
    assert stage_of_state(encoder)["network.distillation_token"] == 0


def test_the_distillation_token_takes_no_weight_decay():
    encoder = tokens()
    (excluded,) = [group["params"] for group in parameter_groups(encoder) if group.get("weight_decay") == 0.0]
    ids = {id(p) for p in excluded}
    assert {id(encoder.network.distillation_token), id(encoder.network.class_token)} <= ids
    assert id(encoder.network.blocks[0].qkv.weight) not in ids


def test_two_tokens_are_exported_for_any_number_of_images():
    encoder, image = tokens(drop_path=0.5).eval(), torch.rand(2, 1, 8, 8)
    program = torch.export.export(encoder, (image,), dynamic_shapes=({0: torch.export.Dim("images")},))
    image = torch.rand(5, 1, 8, 8)
    torch.testing.assert_close(program.module()(image), encoder(image))


def test_stochastic_depth_rises_linearly_with_the_depth():
    rates = [getattr(block.drop_path, "p", 0.0) for block in tokens(depth=5, drop_path=0.2).network.blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    rates = [getattr(block.drop_path, "p", 0.0) for block in DistilledViT(image_size=16).network.blocks]
    assert rates == pytest.approx([0.1 * n / 11 for n in range(12)])


def test_stochastic_depth_drops_attention_and_mlp_separately_and_scales_the_rest():
    block = tokens(drop_path=0.3).double().network.blocks[1]
    x = torch.randn(1, 6, 12, dtype=torch.float64).expand(4000, -1, -1)
    with torch.no_grad():
        for p in block.parameters():
            p.normal_(std=0.5)
        block.eval()
        attention = block(x[:1]) - x[:1] - block.mlp(block.norm2(x[:1] + self_attention(block, x[:1])))
        out = block.train()(x)
        kept = {}
        for with_attention in (False, True):
            middle = x[:1] + with_attention * attention / 0.7
            for with_mlp in (False, True):
                expected = middle + with_mlp * block.mlp(block.norm2(middle)) / 0.7
                kept[with_attention, with_mlp] = int(torch.isclose(out, expected).flatten(1).all(1).sum())
    assert sum(kept.values()) == 4000
    shares = [0.09, 0.21, 0.21, 0.49]  # as independent events have
    observed = [kept[False, False], kept[False, True], kept[True, False], kept[True, True]]
    assert stats.chisquare(observed, [4000 * share for share in shares]).pvalue > 0.001


def self_attention(block, x):
    mlp, block.mlp = block.mlp, nn.Identity()
    norm, block.norm2 = block.norm2, Zero()
    try:
        return block(x) - x
    finally:
        block.mlp, block.norm2 = mlp, norm


class Zero(nn.Module):
    def forward(self, x):
        return 0 * x


def test_stochastic_depth_does_nothing_in_eval_and_adds_no_weights():
    dropping, plain = tokens(drop_path=0.9), tokens()
    assert dropping.state_dict().keys() == plain.state_dict().keys()
    dropping.load_state_dict(plain.state_dict())
    image = torch.rand(4, 1, 8, 8)
    assert torch.equal(dropping.eval()(image), plain.eval()(image))
    assert not torch.equal(dropping.train()(image), plain.train()(image))


def test_without_stochastic_depth_training_draws_no_random_numbers():
    encoder, state = tokens(), torch.get_rng_state()
    encoder.train()(torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(isinstance(m, StochasticDepth) for m in encoder.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "both"}, "pool is 'both': it must be 'token', 'tokens' or 'mean'"),
        ({"drop_path": 1.0}, "drop_path is 1.0: it must be at least 0"),
        ({"drop_path": -0.1}, "drop_path is -0.1"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ViT(**{**SMALL, **options})
