from collections import Counter

import pytest
import torch
from torch.autograd import grad, gradcheck
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from losses import streaming
from losses.streaming import streamed_logsumexp, streamed_logsumexp_of_others


def vectors(n, dim=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=dtype).requires_grad_()


def double_loop(anchors, keys, scale, exclude):
    """Anchor by anchor, key by key, term by term."""
    totals = []
    for i, anchor in enumerate(anchors):
        total = torch.zeros((), dtype=torch.float64)
        for j, key in enumerate(keys):
            if j != exclude[i]:
                total = total + torch.exp(scale * sum(a * k for a, k in zip(anchor, key)))
        totals.append(torch.log(total))
    return torch.stack(totals)


@pytest.fixture(params=[1, 3, 4, 100])
def tile(request, monkeypatch):
    monkeypatch.setattr(streaming, "_tile_size", lambda vectors: request.param)


@pytest.mark.usefixtures("tile")
def test_values_and_gradients_over_keys_equal_a_double_loop():
    anchors, keys, weight = vectors(5), vectors(11, seed=1), vectors(5, 1, seed=2).detach()[:, 0]
    exclude = torch.tensor([10, -1, 0, 3, 3])
    total, expected = (f(anchors, keys, 0.7, exclude) for f in (streamed_logsumexp, double_loop))
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)
    gradients, right = (grad(value @ weight, (anchors, keys)) for value in (total, expected))
    torch.testing.assert_close(gradients, right, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("n", [2, 7, 9])
def test_values_and_gradients_over_others_equal_a_double_loop(n):
    x, weight = vectors(n), vectors(n, 1, seed=2).detach()[:, 0]
    total, expected = streamed_logsumexp_of_others(x, 0.7), double_loop(x, x, 0.7, range(n))
    torch.testing.assert_close(total, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grad(total @ weight, x), grad(expected @ weight, x), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("tile")
def test_gradients_pass_gradcheck():
    exclude = torch.tensor([2, 0, 6])
    assert gradcheck(lambda a, k: streamed_logsumexp(a, k, 0.7, exclude), (vectors(3), vectors(7, seed=1)))
    assert gradcheck(lambda a, k: streamed_logsumexp(a, k, 0.7), (vectors(3), vectors(7, seed=1)))
    assert gradcheck(lambda x: streamed_logsumexp_of_others(x, 0.7), vectors(5))


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0, 50.0, 100.0])
@pytest.mark.parametrize("keys", ["identical", "opposite", "random"])
def test_values_and_gradients_are_right_in_float32_for_every_scale(keys, scale):
    anchors = F.normalize(vectors(6, 16, torch.float32), dim=1).detach()
    if keys == "random":
        keys = F.normalize(vectors(9, 16, torch.float32, seed=1), dim=1).detach()
    else:
        anchors = anchors[:1].repeat(6, 1)
        keys = (anchors if keys == "identical" else -anchors).repeat(2, 1)
    inputs = anchors.requires_grad_(), keys.requires_grad_()
    total, expected = streamed_logsumexp(*inputs, scale), (scale * anchors.double() @ keys.double().T).logsumexp(1)
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=1e-6 * scale)
    gradients, right = (grad(value.sum(), inputs) for value in (total, expected))
    torch.testing.assert_close(gradients, right, rtol=1e-5 + 1e-6 * scale, atol=1e-6 * scale)


@pytest.mark.parametrize("sign", [1, -1])
def test_two_vectors_have_but_each_other(sign):
    """The sum of a single term, which is exp(-100) between opposite vectors: zero in float32."""
    v = torch.tensor([[0.6, 0.8], [sign * 0.6, sign * 0.8]], requires_grad=True)
    total = streamed_logsumexp_of_others(v, 100.0)
    torch.testing.assert_close(total, torch.full((2,), sign * 100.0))
    torch.testing.assert_close(grad(total.sum(), v)[0], 200 * v.detach().flip(0))


def test_where_no_key_is_left_there_is_no_gradient():
    x, no_keys = vectors(1), torch.empty(0, 4, dtype=torch.float64)
    itself = torch.tensor([0])
    for total in (
        streamed_logsumexp_of_others(x, 1.0),
        streamed_logsumexp(x, x, 1.0, itself),
        streamed_logsumexp(x, no_keys, 1.0),
    ):
        assert total.item() == -torch.inf
        assert not grad(total.sum(), x)[0].any()


def test_autocast_changes_nothing():
    anchors, keys = vectors(5, dtype=torch.float32), vectors(11, dtype=torch.float32, seed=1)

    def values_and_gradients():
        over_keys, over_others = streamed_logsumexp(anchors, keys, 3.0), streamed_logsumexp_of_others(keys, 3.0)
        return over_keys, over_others, *grad(over_keys.sum() + over_others.sum(), (anchors, keys))

    expected = values_and_gradients()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(values_and_gradients(), expected, rtol=0, atol=0)


def test_half_precision_is_summed_in_float32():
    anchors, keys = vectors(5, dtype=torch.bfloat16), vectors(11, dtype=torch.bfloat16, seed=1)
    total = streamed_logsumexp(anchors, keys, 3.0)
    torch.testing.assert_close(total, streamed_logsumexp(anchors.float(), keys.float(), 3.0), rtol=0, atol=0)
    assert grad(total.sum(), keys)[0].dtype == torch.bfloat16


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm_.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("of_anchors", "of_keys"), [(True, True), (True, False), (False, True)])
def test_gradients_not_asked_for_cost_nothing(of_anchors, of_keys):
    anchors = vectors(5).detach().requires_grad_(of_anchors)
    keys = vectors(11, seed=1).detach().requires_grad_(of_keys)
    total = streamed_logsumexp(anchors, keys, 1.0).sum()
    with Products() as products:
        total.backward()
    assert products.count == 1 + of_anchors + of_keys  # the logits again, and what is asked for


@pytest.mark.usefixtures("tile")
def test_a_symmetric_tile_is_visited_once():
    x = vectors(9)
    tiles = len(streaming._tiles(x))
    with Products() as products:
        streamed_logsumexp_of_others(x, 1.0)
    assert products.count == tiles * (tiles + 1) / 2


class Operations(TorchDispatchMode):
    """Counts operations, by name."""

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count[func.overloadpacket] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("anchors", "keys"), [(32, 65_536), (65_536, 32), (2048, 1024)])
def test_the_tiles_of_a_gpu_are_chosen_by_their_area(anchors, keys, monkeypatch):
    monkeypatch.setattr(streaming, "_tile_size", lambda vectors: 2048)
    anchors, keys = vectors(anchors, 2, torch.float32), vectors(keys, 2, torch.float32, seed=1).detach()
    with Operations() as operations:
        streamed_logsumexp(anchors, keys, 1.0).sum().backward()
    assert operations.count[torch.ops.aten.mm] == 2  # one tile, forward and backward: 64 were 32 rows high
    assert operations.count.total() <= 40


def test_nothing_is_left_out_where_nothing_has_to_be():
    for exclude, left_out in ((None, 0), (torch.arange(5), 2)):
        with Operations() as operations:
            streamed_logsumexp(vectors(5), vectors(7, seed=1), 1.0, exclude).sum().backward()
        assert operations.count[torch.ops.aten.scatter_add_] == left_out
