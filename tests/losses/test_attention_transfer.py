import math

import pytest
import torch
from torch.autograd import grad, gradcheck

from losses import AttentionTransfer


def maps(student=(4, 3, 2), teacher=(5, 3, 2), n=3):
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(n, *shape, generator=generator, dtype=torch.float64) for shape in (student, teacher)]
    return draw[0].requires_grad_(), draw[1]


def attention(image, p):
    """The unit vector of one image [C, H, W], position by position."""
    channels, height, width = image.shape
    q = [sum(abs(image[c, i, j].item()) ** p for c in range(channels)) for i in range(height) for j in range(width)]
    return [x / math.sqrt(sum(y * y for y in q)) for x in q]


def slow(student, teacher, p):
    squares = [(a - b) ** 2 for s, t in zip(student, teacher) for a, b in zip(attention(s, p), attention(t, p))]
    return sum(squares) / len(squares)


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_it_is_the_mean_square_of_the_difference_of_unit_maps(p):
    student, teacher = maps()
    assert AttentionTransfer(p)(student, teacher).item() == pytest.approx(slow(student, teacher, p), rel=1e-12)


def test_the_larger_layer_is_averaged_down_to_the_smaller():
    student, teacher = maps((4, 6, 4), (5, 3, 2))
    small = (
        student[:, :, ::2, ::2] + student[:, :, 1::2, ::2] + student[:, :, ::2, 1::2] + student[:, :, 1::2, 1::2]
    ) / 4
    assert AttentionTransfer()(student, teacher).item() == pytest.approx(slow(small, teacher, 2), rel=1e-12)
    assert AttentionTransfer()(teacher, student).item() == pytest.approx(slow(small, teacher, 2), rel=1e-12)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0])
def test_gradient_passes_gradcheck(p):
    student, teacher = maps((2, 4, 2), (3, 2, 2))
    assert gradcheck(lambda s: AttentionTransfer(p)(s, teacher), student)


def test_the_scale_of_an_image_changes_nothing():
    student, teacher = maps()
    scale = torch.tensor([1e-3, 1.0, 1e5], dtype=torch.float64)[:, None, None, None]
    expected = AttentionTransfer()(student, teacher)
    torch.testing.assert_close(AttentionTransfer()(scale * student, teacher), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(AttentionTransfer()(student, -scale * teacher), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0])
def test_an_image_without_any_activation_gets_no_gradient(p):
    student, teacher = maps()
    dead = student.detach().clone()
    dead[1] = 0
    dead.requires_grad_()
    (gradient,) = grad(AttentionTransfer(p)(dead, teacher), dead)
    assert not gradient[1].any()
    assert gradient[0].any()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("p", [0.5, 0, math.inf, math.nan])
def test_an_exponent_below_one_is_refused(p):
    with pytest.raises(ValueError, match="p is"):
        AttentionTransfer(p)


def test_layers_that_are_no_maps_are_refused():
    with pytest.raises(ValueError, match=r"\[512\] of the teacher"):
        AttentionTransfer().build((64, 8, 8), (512,), images=1)
