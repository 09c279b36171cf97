import math

import pytest
import torch
from torch.nn import functional as F

from losses import InfoNCE, streaming
from tests.losses.test_ntxent import LargestTensor


def vectors(*counts, dim=4, dtype=torch.float64):
    """Of all lengths; one tensor for each count."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, dim, generator=generator, dtype=torch.float64).mul(3).to(dtype) for n in counts]


def unit(row):
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


def cosine(a, b):
    return sum(x * y for x, y in zip(unit(a), unit(b), strict=True))


def by_hand(anchor, positive, negatives, temperature, exclude=None):
    """MoCo's Equation 1 by scalar arithmetic, the positive in the denominator once."""
    total = 0.0
    for i, (a, p) in enumerate(zip(anchor.tolist(), positive.tolist(), strict=True)):
        found = math.exp(cosine(a, p) / temperature)
        kept = [n for j, n in enumerate(negatives.tolist()) if exclude is None or j != exclude[i]]
        total -= math.log(found / (found + sum(math.exp(cosine(a, n) / temperature) for n in kept)))
    return total / len(anchor)


@pytest.mark.parametrize("tile", [2, 512])
@pytest.mark.parametrize("temperature", [0.07, 0.2, 1.0])
@pytest.mark.parametrize("exclude", [None, [6, 0, 3, 3, 1]])
def test_loss_is_the_papers_formula(temperature, exclude, tile, monkeypatch):
    monkeypatch.setattr(streaming, "_tile_size", lambda vectors: tile)
    anchor, positive, negatives = vectors(5, 5, 7)
    negatives = F.normalize(negatives)
    loss = InfoNCE(temperature)(anchor, positive, negatives, None if exclude is None else torch.tensor(exclude))
    assert loss.item() == pytest.approx(by_hand(anchor, positive, negatives, temperature, exclude), rel=1e-12)


def test_a_negative_that_only_one_anchor_leaves_out_counts_for_the_others():
    anchor, positive, negatives = vectors(2, 2, 3)
    negatives = F.normalize(negatives)
    losses = [InfoNCE()(anchor[i : i + 1], positive[i : i + 1], negatives).item() for i in (0, 1)]
    without = InfoNCE()(anchor[:1], positive[:1], negatives[1:]).item()
    both = InfoNCE()(anchor, positive, negatives, torch.tensor([0, -1])).item()  # -1 is no row
    assert both == pytest.approx((without + losses[1]) / 2, rel=1e-12)


def test_gradients_are_those_of_numerical_differences():
    anchor, positive, negatives = (x.requires_grad_() for x in vectors(3, 3, 4))
    exclude = torch.tensor([2, 0, 3])
    loss = InfoNCE(0.5)
    assert torch.autograd.gradcheck(lambda *x: loss(x[0], x[1], F.normalize(x[2])), (anchor, positive, negatives))
    assert torch.autograd.gradcheck(lambda *x: loss(*x, F.normalize(negatives), exclude), (anchor, positive))


def test_negatives_of_a_memory_get_no_gradient_and_are_not_changed():
    anchor, positive, negatives = vectors(3, 3, 4)
    negatives = F.normalize(negatives)
    before = negatives.clone()
    InfoNCE()(anchor.requires_grad_(), positive, negatives).backward()
    assert negatives.grad is None
    assert positive.grad is None
    assert torch.equal(negatives, before)
    negatives += 1  # as a queue is pushed after the loss: the gradient was taken
    assert anchor.grad.abs().sum() > 0


def test_perfect_features_have_no_loss_unless_their_own_key_is_among_the_negatives():
    """With the key in the denominator twice, the loss could not fall below log 2."""
    anchor = torch.eye(4, dtype=torch.float64)
    others = -anchor.roll(1, 0)
    assert InfoNCE(0.05)(anchor, anchor, others).item() < 1e-7
    with_own = InfoNCE(0.05)(anchor, anchor, anchor).item()
    assert with_own == pytest.approx(math.log(2), abs=1e-6)
    assert InfoNCE(0.05)(anchor, anchor, anchor, torch.arange(4)).item() < 1e-7


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_collapsed_features_have_the_loss_of_guessing(temperature):
    one = torch.ones(1, 3) / math.sqrt(3)
    loss = InfoNCE(temperature)(one.expand(5, -1), one.expand(5, -1), one.expand(9, -1))
    assert loss.item() == pytest.approx(math.log(10), rel=1e-5)


def test_lengths_of_anchors_and_positives_do_not_count():
    anchor, positive, negatives = vectors(5, 5, 7)
    negatives = F.normalize(negatives)
    expected = InfoNCE()(anchor, positive, negatives)
    torch.testing.assert_close(InfoNCE()(anchor * 5, positive / 3, negatives), expected)


@pytest.mark.parametrize("temperature", [0.01, 0.07])
@pytest.mark.parametrize("kind", ["same", "opposite"])
def test_float32_is_right_at_low_temperatures(kind, temperature):
    anchor, negatives = vectors(5, 7)
    positive = anchor if kind == "same" else -anchor
    negatives = F.normalize(negatives)
    loss = InfoNCE(temperature)(anchor.float(), positive.float(), negatives.float())
    assert loss.dtype == torch.float32
    expected = by_hand(anchor, positive, negatives, temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-5, abs=1e-6 / temperature)


def test_half_precision_embeddings_are_compared_in_float32():
    anchor, positive, negatives = vectors(16, 16, 32, dim=16, dtype=torch.bfloat16)
    negatives = F.normalize(negatives.float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = InfoNCE()(anchor, positive, negatives)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, InfoNCE()(anchor.float(), positive.float(), negatives), rtol=0, atol=0)


def test_the_matrix_of_logits_is_never_stored():
    anchor, positive, negatives = vectors(1024, 1024, 4096, dim=8, dtype=torch.float32)
    anchor.requires_grad_()
    with LargestTensor() as largest:
        InfoNCE()(anchor, positive, F.normalize(negatives)).backward()
    assert 512 * 512 <= largest.elements < 1024 * 4096 / 4


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match=r"temperature is .*positive"):
        InfoNCE(temperature)


@pytest.mark.parametrize("shapes", [[(4, 3), (5, 3), (6, 3)], [(4, 3), (4, 3), (6, 2)], [(3,), (3,), (6, 3)]])
def test_embeddings_of_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"anchor and positive must be \[N, D\], negatives \[K, D\]"):
        InfoNCE()(*(torch.ones(shape) for shape in shapes))
