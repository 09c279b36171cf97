import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from losses import NTXent, ntxent, streaming


def algorithm_1(z1, z2, temperature):
    """The paper's Algorithm 1 as a double loop over Python floats: views 2k-1 and 2k are of the same image."""
    z = [row for pair in zip(z1.tolist(), z2.tolist()) for row in pair]

    def similarity(i, j):
        dot = sum(a * b for a, b in zip(z[i], z[j]))
        return dot / math.sqrt(sum(a * a for a in z[i])) / math.sqrt(sum(b * b for b in z[j]))

    def term(i, j):
        others = sum(math.exp(similarity(i, k) / temperature) for k in range(len(z)) if k != i)
        return -math.log(math.exp(similarity(i, j) / temperature) / others)

    return sum(term(2 * k, 2 * k + 1) + term(2 * k + 1, 2 * k) for k in range(len(z1))) / len(z)


def dense(z1, z2, temperature):
    """The same from the whole matrix, in float64."""
    z = F.normalize(torch.cat([z1, z2]).double(), dim=1)
    logits = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z1)))


def embeddings(n=5, dim=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, n, dim, generator=generator, dtype=dtype) * 3


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_ntxent_equals_the_double_loop_of_algorithm_1(n, temperature):
    z1, z2 = embeddings(n)
    torch.testing.assert_close(
        NTXent(temperature)(z1, z2).item(), algorithm_1(z1, z2, temperature), rtol=1e-12, atol=1e-12
    )


def test_loss_of_orthogonal_images_has_its_closed_form():
    z = torch.eye(4, dtype=torch.float64)  # views agree, images are orthogonal: -1/T + log(e^(1/T) + 2 (N - 1))
    expected = -1 / 0.2 + math.log(math.exp(1 / 0.2) + 6)
    assert NTXent(0.2)(z, z).item() == pytest.approx(expected, rel=1e-12)


def test_loss_of_a_collapsed_batch_is_the_log_of_the_number_of_others():
    z = torch.ones(8, 3, dtype=torch.float64)
    assert NTXent(0.07)(z, z).item() == pytest.approx(math.log(15), rel=1e-12)


def test_gradient_passes_gradcheck():
    z1, z2 = embeddings(3, 4)
    assert gradcheck(NTXent(0.3), (z1.requires_grad_(), z2.requires_grad_()))


@pytest.mark.parametrize("tile", [1, 3, 4, 64])
def test_gradient_equals_that_of_the_whole_matrix(tile, monkeypatch):
    monkeypatch.setattr(streaming, "_tile_size", lambda vectors: tile)
    z1, z2 = (z.requires_grad_() for z in embeddings(5))
    gradients = torch.autograd.grad(NTXent(0.1)(z1, z2), (z1, z2))
    torch.testing.assert_close(gradients, torch.autograd.grad(dense(z1, z2, 0.1), (z1, z2)), rtol=1e-9, atol=1e-12)


def test_an_anchor_gets_no_gradient_from_its_similarity_with_itself():
    """A subtracted self-term would leave one: with N = 1 nothing is left to choose from, and the gradient is zero."""
    z1, z2 = (z.requires_grad_() for z in embeddings(1))
    NTXent(0.1)(z1, z2).backward()
    torch.testing.assert_close(z1.grad, torch.zeros_like(z1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("views", ["identical", "opposite", "random", "collapsed", "collapsed and opposite"])
def test_loss_and_gradient_are_right_in_float32_at_every_temperature(views, temperature):
    z1, z2 = embeddings(5, dtype=torch.float32)
    if views.startswith("collapsed"):
        z1 = z1[:1].repeat(5, 1)
    if views != "random":
        z2 = -z1 if "opposite" in views else z1.clone()
    z1, z2 = z1.requires_grad_(), z2.requires_grad_()
    loss, expected = NTXent(temperature)(z1, z2), dense(z1, z2, temperature)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6 / temperature)  # float32 cosines
    gradients, right = (torch.autograd.grad(value, (z1, z2)) for value in (loss, expected))
    torch.testing.assert_close(gradients, right, rtol=1e-4, atol=1e-6 / temperature)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_loss_and_gradient_are_those_of_lightly(temperature):
    lightly = pytest.importorskip("lightly.loss").NTXentLoss(temperature)
    z1, z2 = (z.requires_grad_() for z in embeddings(600, 16, torch.float32))  # three tiles of anchors
    loss, expected = NTXent(temperature)(z1, z2), lightly(z1, z2)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    gradients, right = (torch.autograd.grad(value, (z1, z2)) for value in (loss, expected))
    torch.testing.assert_close(gradients, right, rtol=1e-5, atol=1e-6 * right[0].abs().max().item())


def test_half_precision_embeddings_are_compared_in_float32():
    z1, z2 = embeddings(64, 32, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = NTXent(0.1)(z1, z2)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, NTXent(0.1)(z1.float(), z2.float()), rtol=0, atol=0)


@pytest.mark.parametrize("tile", [5, 64])
def test_shards_with_all_candidates_average_to_the_loss_and_gradient_of_the_whole(tile, monkeypatch):
    monkeypatch.setattr(streaming, "_tile_size", lambda vectors: tile)
    z1, z2 = (z.requires_grad_() for z in embeddings(6))
    loss = NTXent(0.2)
    whole = torch.autograd.grad(loss(z1, z2), (z1, z2))
    shards = [loss(z1[i : i + 2], z2[i : i + 2], (z1, z2), offset=i) for i in (0, 2, 4)]
    parts = torch.autograd.grad(sum(shards) / 3, (z1, z2))
    assert (sum(shards) / 3).item() == pytest.approx(loss(z1, z2).item(), rel=1e-12)
    for part, expected in zip(parts, whole):
        torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-14)


def test_views_as_their_own_candidates_take_half_the_work(monkeypatch):
    z1, z2 = embeddings()
    expected = NTXent()(z1, z2, (z1.clone(), z2.clone()))
    monkeypatch.delattr(ntxent, "streamed_logsumexp")
    torch.testing.assert_close(NTXent()(z1, z2, (z1, z2)), expected, rtol=1e-12, atol=0)


def test_candidates_that_share_one_view_are_no_views_of_their_own():
    z1, z2 = embeddings()
    other = z2.flip(0)
    torch.testing.assert_close(NTXent()(z1, z2, (z1, other)), NTXent()(z1, z2, (z1.clone(), other)), rtol=0, atol=0)


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_the_matrix_of_logits_is_never_stored(gathered, backward):
    z1, z2 = (z.requires_grad_() for z in embeddings(1024, 8, torch.float32))
    loss = NTXent()(z1, z2, (z1.clone(), z2.clone()) if gathered else None)
    with LargestTensor() as largest:
        if backward:
            loss.backward()
        else:
            NTXent()(z1, z2, (z1.clone(), z2.clone()) if gathered else None)
    assert 512 * 512 <= largest.elements < 2048 * 2048 / 4


@pytest.mark.slow
def test_a_compiled_encoder_gets_the_same_loss_and_gradient():
    image = embeddings(6, dtype=torch.float32)
    encoder = torch.nn.Linear(7, 4)

    def loss_of(image):
        return NTXent(0.2)(*encoder(image))

    losses = [step(image) for step in (loss_of, torch.compile(loss_of, backend="aot_eager"))]
    gradients = [torch.autograd.grad(loss, encoder.weight) for loss in losses]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature is .*positive"):
        NTXent(temperature)


def test_views_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[4, 3\], \[5, 3\]"):
        NTXent()(torch.ones(4, 3), torch.ones(5, 3))


def test_anchors_outside_the_candidates_are_refused():
    z = torch.ones(4, 3)
    with pytest.raises(ValueError, match="offset is 2"):
        NTXent()(z, z, (z, z), offset=2)
