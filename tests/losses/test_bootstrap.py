import math

import pytest
import torch

from losses import BootstrapLoss, NTXent, streaming
from tests.losses.test_ntxent import LargestTensor


def vectors(count, n=5, dim=4, dtype=torch.float64):
    """Of all lengths."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64).mul(3).to(dtype) for _ in range(count)]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def by_hand(predictions, targets, weight=0.0, temperature=0.1):
    """Equation 6 of the paper for both views, by scalar arithmetic: its negative, plus 2 for each view."""
    (p1, p2), (t1, t2) = ([x.tolist() for x in views] for views in (predictions, targets))
    total = 0.0
    for p, same_view, other_view in ((p1, t1, t2), (p2, t2, t1)):
        for i, one in enumerate(p):
            negatives = sum(math.exp(cosine(one, t) / temperature) for j, t in enumerate(same_view) if j != i)
            negatives += sum(math.exp(cosine(one, t) / temperature) for t in other_view)
            total += 2 - 2 * cosine(one, other_view[i]) + weight * 2 * temperature * math.log(negatives)
    return total / len(p1)


@pytest.mark.parametrize("tile", [2, 512])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_loss_is_the_papers_formula(weight, temperature, tile, monkeypatch):
    monkeypatch.setattr(streaming, "_tile_size", lambda vectors: tile)
    p1, p2, t1, t2 = vectors(4)
    loss = BootstrapLoss(weight, temperature)((p1, p2), (t1, t2))
    assert loss.item() == pytest.approx(by_hand((p1, p2), (t1, t2), weight, temperature), rel=1e-12)


def test_loss_is_the_squared_distance_of_vectors_of_length_one():
    p1, p2, t1, t2 = vectors(4)
    one, two = (
        (p / p.norm(dim=1, keepdim=True) - t / t.norm(dim=1, keepdim=True)).pow(2).sum(1).mean()
        for p, t in ((p1, t2), (p2, t1))
    )
    torch.testing.assert_close(BootstrapLoss()((p1, p2), (t1, t2)), one + two)


@pytest.mark.parametrize(("factor", "expected"), [(2.0, 0.0), (-3.0, 8.0)])
def test_loss_is_between_0_for_equal_and_8_for_opposite_directions(factor, expected):
    p1, p2 = vectors(2)
    loss = BootstrapLoss()((p1, p2), (factor * p2, factor * p1))
    assert loss.item() == pytest.approx(expected, abs=1e-12)


def test_orthogonal_directions_have_half_of_the_largest_loss():
    p, t = torch.eye(4)[:2], torch.eye(4)[2:]
    assert BootstrapLoss()((p, p), (t, t)).item() == 4


def test_with_all_negatives_and_no_target_of_its_own_it_is_simclrs_loss():
    """Appendix F.5: 2 α times the loss of SimCLR, here the sum over both views, and up to a constant."""
    z1, z2 = vectors(2)
    loss = BootstrapLoss(1.0, 0.2)((z1, z2), (z1, z2))
    torch.testing.assert_close(loss, 4 + 2 * 0.2 * 2 * NTXent(0.2)(z1, z2), rtol=1e-12, atol=0)


def test_without_negatives_the_temperature_and_other_images_play_no_part():
    p1, p2, t1, t2 = vectors(4)
    expected = BootstrapLoss()((p1, p2), (t1, t2))
    assert torch.equal(BootstrapLoss(0.0, 7.0)((p1, p2), (t1, t2), (t1 * 0, t2 * 0), 2), expected)
    each = [BootstrapLoss()((p1[i : i + 1], p2[i : i + 1]), (t1[i : i + 1], t2[i : i + 1])) for i in range(5)]
    torch.testing.assert_close(torch.stack(each).mean(), expected)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_gradients_are_those_of_numerical_differences(weight):
    views = [x.requires_grad_() for x in vectors(4, n=3)]
    loss = BootstrapLoss(weight, 0.5)
    assert torch.autograd.gradcheck(lambda p1, p2, t1, t2: loss((p1, p2), (t1, t2)), views)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_targets_without_history_get_no_gradient(weight):
    p1, p2, t1, t2 = vectors(4)
    BootstrapLoss(weight)((p1.requires_grad_(), p2.requires_grad_()), (t1, t2)).backward()
    assert t1.grad is None
    assert t2.grad is None
    assert p1.grad.abs().min() > 0


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_shards_with_all_candidates_average_to_the_loss_and_gradient_of_the_whole(weight):
    p1, p2, t1, t2 = (x.requires_grad_() for x in vectors(4, n=6))
    loss = BootstrapLoss(weight, 0.2)
    whole = loss((p1, p2), (t1, t2))
    shards = []
    for start in (0, 2, 4):
        rows = slice(start, start + 2)
        shards.append(loss((p1[rows], p2[rows]), (t1[rows], t2[rows]), (t1, t2), start))
    assert (sum(shards) / 3).item() == pytest.approx(whole.item(), rel=1e-12)
    inputs = (p1, p2, t1, t2)
    for part, expected in zip(torch.autograd.grad(sum(shards) / 3, inputs), torch.autograd.grad(whole, inputs)):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-14)


def test_negatives_drive_predictions_away_from_the_targets_of_other_images():
    """The gradient of β's term alone, less that of an image of one, which has no others to be driven from."""
    p = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64).requires_grad_()
    t = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    attract = BootstrapLoss()((p, p), (t, t))
    repel = BootstrapLoss(1.0, 0.1)((p, p), (t, t)) - attract
    (gradient,) = torch.autograd.grad(repel, p)
    step = p.detach() - 0.01 * gradient
    own = BootstrapLoss()((step[:1], step[:1]), (t[:1], t[:1]))
    other = BootstrapLoss()((step[:1], step[:1]), (t[1:], t[1:]))
    assert other > own  # the first, which was as near to both, is now farther from the other's


def test_half_precision_embeddings_are_compared_in_float32():
    p1, p2, t1, t2 = vectors(4, n=16, dim=16, dtype=torch.bfloat16)
    for weight in (0.0, 1.0):
        with torch.autocast("cpu", torch.bfloat16):
            loss = BootstrapLoss(weight)((p1, p2), (t1, t2))
        assert loss.dtype == torch.float32
        expected = BootstrapLoss(weight)((p1.float(), p2.float()), (t1.float(), t2.float()))
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)


def test_the_matrix_of_logits_is_never_stored():
    p1, p2, t1, t2 = vectors(4, n=1024, dim=8, dtype=torch.float32)
    with LargestTensor() as largest:
        BootstrapLoss(1.0)((p1.requires_grad_(), p2), (t1, t2)).backward()
    assert 512 * 512 <= largest.elements < 1024 * 2048 / 4


@pytest.mark.parametrize("weight", [-0.1, math.nan])
def test_a_negative_weight_is_refused(weight):
    with pytest.raises(ValueError, match=f"negatives_weight is {weight}: it must be at least 0"):
        BootstrapLoss(weight)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*positive"):
        BootstrapLoss(1.0, temperature)
