import pytest
import torch
from torch.autograd import gradcheck

from losses import Hint


def layers(student, teacher, n=3):
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randn(n, *shape, generator=generator, dtype=torch.float64) for shape in (student, teacher)]
    return draw[0].requires_grad_(), draw[1]


def built(student, teacher, **options):
    torch.manual_seed(1)
    loss = Hint(**options)
    loss.build(student, teacher, images=100)
    return loss.double()


def slow(weight, bias, student, teacher):
    """Half the squared distance of one vector of the teacher and its prediction, entry by entry."""
    total = 0.0
    for row, offset, target in zip(weight.tolist(), bias.tolist(), teacher.tolist()):
        total += (target - offset - sum(w * x for w, x in zip(row, student.tolist()))) ** 2 / 2
    return total


def test_of_maps_it_is_equation_3_at_every_position():
    student, teacher = layers((2, 3, 4), (5, 3, 4))
    loss = built((2, 3, 4), (5, 3, 4), average=False)
    weight, bias = loss.regressor.weight[:, :, 0, 0], loss.regressor.bias
    terms = [slow(weight, bias, student[b, :, i, j], teacher[b, :, i, j])
             for b in range(3) for i in range(3) for j in range(4)]  # fmt: skip
    assert loss(student, teacher).item() == pytest.approx(sum(terms) / 3, rel=1e-12)
    loss.average = True
    assert loss(student, teacher).item() == pytest.approx(sum(terms) / 3 / (5 * 3 * 4), rel=1e-12)


@pytest.mark.parametrize(("student", "teacher"), [((4,), (6,)), ((5, 4), (5, 6))])
def test_of_vectors_and_tokens_it_is_equation_3(student, teacher):
    s, t = layers(student, teacher)
    loss = built(student, teacher)
    flat = zip(s.flatten(0, -2), t.flatten(0, -2))
    total = sum(slow(loss.regressor.weight, loss.regressor.bias, a, b) for a, b in flat)
    assert loss(s, t).item() == pytest.approx(total / t.numel(), rel=1e-12)


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 6, 4), (3, 3, 2)), ((2, 3, 2), (3, 6, 4)), ((2, 6, 2), (3, 3, 4))]
)
def test_the_larger_map_is_averaged_down_to_the_smaller(student, teacher):
    s, t = layers(student, teacher)
    loss = built(student, teacher)

    def halved(x, axis):
        return (x.index_select(axis, torch.arange(0, x.shape[axis], 2))
                + x.index_select(axis, torch.arange(1, x.shape[axis], 2))) / 2  # fmt: skip

    small_s, small_t = s, t
    for axis in (2, 3):
        if s.shape[axis] > t.shape[axis]:
            small_s = halved(small_s, axis)
        elif s.shape[axis] < t.shape[axis]:
            small_t = halved(small_t, axis)
    prediction = torch.einsum("tc,bchw->bthw", loss.regressor.weight[:, :, 0, 0], small_s)
    prediction = prediction + loss.regressor.bias[:, None, None]
    expected = ((prediction - small_t) ** 2 / 2).mean()
    assert loss(s, t).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize(("student", "teacher"), [((2, 4, 4), (3, 2, 2)), ((4,), (6,))])
def test_gradients_of_student_and_regressor_pass_gradcheck(student, teacher):
    s, t = layers(student, teacher)
    loss = built(student, teacher)
    names, weights = zip(*loss.named_parameters())
    assert len(names) == 2

    def of(s, *weights):
        return torch.func.functional_call(loss, dict(zip(names, weights)), (s, t))

    assert gradcheck(of, (s, *weights))


def test_a_student_that_the_regressor_maps_onto_the_teacher_has_no_loss():
    s, _ = layers((2, 3, 3), (5, 3, 3))
    loss = built((2, 3, 3), (5, 3, 3))
    assert loss(s, loss.regressor(s)).item() == 0


def test_regressor_and_loss_are_in_float32_under_autocast():
    s, t = (x.detach().float() for x in layers((2, 3, 3), (5, 3, 3)))
    loss = built((2, 3, 3), (5, 3, 3)).float()
    expected = loss(s.bfloat16().float(), t)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(s.bfloat16(), t)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3, 3), (5,)), ((4, 8), (5, 8)), ((2, 3, 3, 3), (2, 3, 3, 3)), ((), ())]
)
def test_layers_that_no_regressor_fits_are_refused(student, teacher):
    with pytest.raises(ValueError, match="a hint needs"):
        Hint().build(student, teacher, images=1)


def test_before_build_it_says_what_is_missing():
    with pytest.raises(RuntimeError, match=r"call build\(\)"):
        Hint()(torch.ones(2, 3), torch.ones(2, 3))
