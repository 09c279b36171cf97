import math

import pytest
import torch
from torch.nn import functional as F

from losses import NCE


def vectors(*counts, dim=4, dtype=torch.float64):
    """A feature is of any length, what stands in a bank of length one."""
    generator = torch.Generator().manual_seed(0)
    feature, *bank = (torch.randn(n, dim, generator=generator, dtype=torch.float64) for n in counts)
    return [(feature * 3).to(dtype), *(F.normalize(rows).to(dtype) for rows in bank)]


def dot(f, v):
    length = math.sqrt(sum(x * x for x in f))
    return sum(x * y for x, y in zip(f, v, strict=True)) / length


def by_hand(feature, positive, noise, instances, z, temperature):
    """Equations 4 to 7 of the paper by scalar arithmetic."""
    noise_share = len(noise) / instances  # m Pn(i)
    total = 0.0
    for f, own in zip(feature.tolist(), positive.tolist(), strict=True):
        p = math.exp(dot(f, own) / temperature) / z
        total -= math.log(p / (p + noise_share))
        for v in noise.tolist():
            p = math.exp(dot(f, v) / temperature) / z
            total -= math.log(1 - p / (p + noise_share))
    return total / len(feature)


def log(number):
    return torch.tensor(math.log(number), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [0.07, 0.5, 1.0])
@pytest.mark.parametrize(("drawn", "instances", "z"), [(1, 50, 30.0), (6, 50, 400.0), (6, 5, 7.0)])
def test_loss_is_the_papers_formula(drawn, instances, z, temperature):
    feature, positive, noise = vectors(5, 5, drawn)
    loss = NCE(temperature)(feature, positive, noise, instances, log(z))
    assert loss.item() == pytest.approx(by_hand(feature, positive, noise, instances, z, temperature), rel=1e-9)


def test_the_constant_z_is_the_mean_over_features_and_noise_times_the_instances():
    feature, noise = vectors(5, 6)
    total = sum(math.exp(dot(f, v) / 0.3) for f in feature.tolist() for v in noise.tolist())
    log_z = NCE(0.3).log_z(feature.requires_grad_(), noise, 50)
    assert log_z.item() == pytest.approx(math.log(50 * total / (5 * 6)), rel=1e-12)
    assert not log_z.requires_grad


def test_the_estimate_from_all_instances_is_the_denominator_of_the_softmax():
    feature, bank = vectors(1, 9)
    exact = (F.normalize(feature) @ bank.T / 0.1).logsumexp(1).squeeze()
    torch.testing.assert_close(NCE(0.1).log_z(feature, bank, 9), exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("drawn", "instances"), [(1, 10), (8, 10), (64, 1000)])
def test_collapsed_features_have_the_loss_of_guessing(drawn, instances):
    """P is 1/n for all, so that h is 1 / (1 + m)."""
    one = torch.ones(1, 4, dtype=torch.float64) / 2
    feature, noise = one.expand(3, -1), one.expand(drawn, -1)
    loss = NCE()(feature, feature, noise, instances, NCE().log_z(feature, noise, instances))
    expected = math.log(1 + drawn) + drawn * math.log((1 + drawn) / drawn)
    assert loss.item() == pytest.approx(expected, rel=1e-12)


def test_perfect_features_have_next_to_no_loss():
    """With P = 1 for the own instance and 0 for the noise, h is 1 / (1 + m / n) for the one and 0 for the other."""
    feature = torch.eye(4, dtype=torch.float64)
    noise = -torch.ones(3, 4, dtype=torch.float64) / 2
    log_z = torch.tensor(1 / 0.02, dtype=torch.float64)  # that of the feature itself
    assert NCE(0.02)(feature, feature, noise, 1000, log_z).item() == pytest.approx(math.log(1 + 3 / 1000), rel=1e-9)


def test_gradients_are_those_of_numerical_differences():
    feature, positive, noise = (x.requires_grad_() for x in vectors(3, 3, 4))
    log_z = log(40.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda *x: NCE(0.5)(*x[:3], 20, x[3]), (feature, positive, noise, log_z))


def test_more_noise_brings_the_gradient_to_that_of_the_softmax():
    """As m grows, that of NCE with the exact Z is that of the log-likelihood (Gutmann and Hyvärinen, 2010)."""
    feature, bank = vectors(1, 6)
    feature.requires_grad_()
    log_z = NCE(0.5).log_z(feature, bank, 6)
    softmax = F.cross_entropy(F.normalize(feature) @ bank.T / 0.5, torch.tensor([2]))
    (expected,) = torch.autograd.grad(softmax, feature)
    errors = []
    for times in (1, 10, 100):
        loss = NCE(0.5)(feature, bank[2:3], bank.repeat(times, 1), 6, log_z)
        (found,) = torch.autograd.grad(loss, feature)
        errors.append(((found - expected).norm() / expected.norm()).item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("kind", ["same", "opposite"])
def test_float32_is_right_at_the_papers_temperature(kind):
    feature, noise = vectors(5, 7)
    positive = F.normalize(feature if kind == "same" else -feature)
    z = math.exp(NCE().log_z(feature, noise, 10**6).item())
    loss = NCE()(feature.float(), positive.float(), noise.float(), 10**6, log(z).float())
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_hand(feature, positive, noise, 10**6, z, 0.07), rel=1e-4)


def test_half_precision_features_are_compared_in_float32():
    feature, positive, noise = vectors(8, 8, 16, dim=16)
    feature, positive, noise = feature.bfloat16(), positive.float(), noise.float()
    with torch.autocast("cpu", torch.bfloat16):
        log_z = NCE().log_z(feature, noise, 100)
        loss = NCE()(feature, positive, noise, 100, log_z)
    assert loss.dtype == log_z.dtype == torch.float32
    torch.testing.assert_close(log_z, NCE().log_z(feature.float(), noise, 100), rtol=0, atol=0)
    torch.testing.assert_close(loss, NCE()(feature.float(), positive, noise, 100, log_z), rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*positive"):
        NCE(temperature)
