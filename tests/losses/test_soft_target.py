import math

import pytest
import torch
from torch.autograd import grad, gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from losses import SoftTarget, soft_target


def logits(n=6, classes=10, spread=3.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, n, classes, generator=generator, dtype=torch.float64) * spread
    student, teacher = (drawn - drawn.mean(2, keepdim=True)).to(dtype)
    return student.requires_grad_(), teacher


def slow(student, teacher, temperature):
    """Section 2 image by image and class by class, without T²."""
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist()):
        s, t = [x / temperature for x in s], [x / temperature for x in t]
        log_student = math.log(sum(math.exp(x) for x in s))
        log_teacher = math.log(sum(math.exp(x) for x in t))
        total -= sum(math.exp(y - log_teacher) * (x - log_student) for x, y in zip(s, t))
    return total / len(student)


@pytest.fixture(params=[1, 25, 1000])
def tile(request, monkeypatch):
    """A tile of one image, of two of ten classes, and of all."""
    monkeypatch.setattr(soft_target, "_tile_elements", lambda logits: request.param)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0, 100.0])
@pytest.mark.parametrize("classes", [10, 1000])
def test_it_is_summed_over_classes_and_averaged_over_images(classes, temperature):
    student, teacher = logits(classes=classes)
    expected = slow(student, teacher, temperature)
    assert SoftTarget(temperature, scale_t2=False)(student, teacher).item() == pytest.approx(expected, rel=1e-12)
    assert SoftTarget(temperature)(student, teacher).item() == pytest.approx(expected * temperature**2, rel=1e-12)


@pytest.mark.parametrize("classes", [10, 1000])
def test_without_any_knowledge_it_is_the_logarithm_of_the_number_of_classes(classes):
    zeros = torch.zeros(3, classes)
    assert SoftTarget(1.0)(zeros, zeros).item() == pytest.approx(math.log(classes), rel=1e-6)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("scale_t2", [True, False])
def test_gradient_has_its_closed_form(scale_t2):
    student, teacher = logits()
    (gradient,) = grad(SoftTarget(5.0, scale_t2)(student, teacher), student)
    difference = (student / 5).softmax(1) - (teacher / 5).softmax(1)
    torch.testing.assert_close(gradient, difference * (5 if scale_t2 else 1 / 5) / 6, rtol=1e-12, atol=1e-14)


@pytest.mark.usefixtures("tile")
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_gradient_passes_gradcheck(temperature):
    student, teacher = logits(5, 4)
    assert gradcheck(lambda s: 3 * SoftTarget(temperature)(s, teacher), student)


def test_temperature_keeps_the_size_of_the_gradient_only_with_scale_t2():
    student, teacher = logits(32, spread=1.0)

    def ratio(scale_t2):
        cool, hot = (grad(SoftTarget(t, scale_t2)(student, teacher), student)[0].norm().item() for t in (1.0, 20.0))
        return cool / hot

    assert 1 / 2 < ratio(scale_t2=True) < 2
    assert ratio(scale_t2=False) > 200


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("tile")
def test_equal_logits_give_exactly_no_gradient(dtype):
    student, _ = logits(dtype=dtype)
    (gradient,) = grad(SoftTarget(3.0)(student, student.detach().clone()), student)
    assert not gradient.any()


def test_a_batch_twice_over_has_the_same_value():
    student, teacher = logits()
    once, twice = SoftTarget()(student, teacher), SoftTarget()(student.repeat(2, 1), teacher.repeat(2, 1))
    assert twice.item() == pytest.approx(once.item(), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tiles_change_neither_value_nor_gradient(dtype, monkeypatch):
    student, teacher = logits(50, 7, dtype=dtype)
    results = []
    for elements in (1, 30, 7 * 50):
        monkeypatch.setattr(soft_target, "_tile_elements", lambda logits, elements=elements: elements)
        loss = SoftTarget(2.0)(student, teacher)
        results.append((loss, grad(loss, student)[0]))
    assert not torch.equal(results[0][1], torch.zeros_like(student))
    for loss, gradient in results[1:]:
        torch.testing.assert_close(loss, results[0][0], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient, results[0][1], rtol=0, atol=0)


def test_half_precision_is_computed_in_float32_and_its_gradient_is_in_half_precision():
    student, teacher = logits(dtype=torch.bfloat16)
    wide = student.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = SoftTarget()(student, teacher)
    expected = SoftTarget()(wide, teacher.float())
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(grad(loss, student)[0], grad(expected, wide)[0].bfloat16(), rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.5, 4.0, 100.0])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e4])
def test_value_and_gradient_are_right_in_float32(spread, temperature):
    student, teacher = logits(16, 100, spread, torch.float32)
    loss = SoftTarget(temperature)(student, teacher)
    x = student.detach().double().requires_grad_()
    expected = torch.nn.functional.cross_entropy(x / temperature, (teacher.double() / temperature).softmax(1))
    expected = expected * temperature**2
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    (gradient,), (right,) = grad(loss, student), grad(expected, x)
    rounding = 2e-7 * max(1, temperature / spread)  # of probabilities: their differences are that much smaller
    torch.testing.assert_close(gradient.double(), right, rtol=2e-3, atol=rounding * right.abs().max().item())


def test_a_class_without_a_logit_in_either_takes_no_part():
    student, teacher = logits()
    fewer = [x[:, :7].detach().requires_grad_() for x in (student, teacher)]
    expected = SoftTarget()(*fewer)
    masked = [torch.cat([x.detach(), torch.full((6, 3), -torch.inf)], 1).requires_grad_() for x in fewer]
    loss = SoftTarget()(*masked)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(grad(loss, masked[0])[0][:, :7], grad(expected, fewer[0])[0], rtol=1e-12, atol=0)
    assert not grad(SoftTarget()(*masked), masked[0])[0][:, 7:].any()


def test_a_class_impossible_for_the_student_and_expected_by_the_teacher_costs_most():
    student, teacher = logits(dtype=torch.float32)
    impossible = student.detach().clone()
    impossible[0, 0] = -torch.inf
    assert SoftTarget()(impossible, teacher) > 1e30


def test_nan_is_not_hidden():
    student, teacher = logits()
    broken = teacher.clone()
    broken[0, 0] = torch.nan
    assert SoftTarget()(student, broken).isnan()
    assert SoftTarget()(broken, teacher).isnan()


def test_the_teacher_gets_no_gradient():
    student, teacher = logits()
    SoftTarget()(student, teacher.requires_grad_()).backward()
    assert student.grad is not None
    assert teacher.grad is None


class LargestWide(TorchDispatchMode):
    """The number of elements of the largest tensor in float32 that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor) and x.dtype == torch.float32:
                self.elements = max(self.elements, x.numel())
        return result


def test_of_100_000_classes_only_one_tile_is_ever_in_float32():
    student, teacher = logits(8, 100_000, dtype=torch.bfloat16)
    with LargestWide() as largest:
        SoftTarget()(student, teacher).backward()
    assert largest.elements == 100_000  # one image
    assert student.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_larger_than_both_logits_is_kept_for_the_gradient(dtype):
    student, teacher = logits(8, 100_000, dtype=dtype)
    kept = []

    def keep(x):
        kept.append(x.numel() * x.element_size())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        SoftTarget()(student, teacher)
    assert 0 < sum(kept) <= 2 * student.numel() * student.element_size()


def test_temperature_may_be_set_between_calls():
    student, teacher = logits()
    loss = SoftTarget(1.0)
    loss.temperature = 8.0
    assert loss(student, teacher).item() == pytest.approx(64 * slow(student, teacher, 8.0), rel=1e-12)


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_a_temperature_that_is_not_positive_is_refused_whenever_it_is_set(temperature):
    with pytest.raises(ValueError, match="temperature is .*positive"):
        SoftTarget(temperature)
    loss = SoftTarget(2.0)
    with pytest.raises(ValueError, match="temperature is .*positive"):
        loss.temperature = temperature
    assert loss.temperature == 2.0


def test_logits_of_different_classes_are_refused():
    with pytest.raises(ValueError, match=r"\[4, 3\] of the student, \[4, 5\] of the teacher"):
        SoftTarget()(torch.ones(4, 3), torch.ones(4, 5))


@pytest.mark.slow
def test_a_compiled_student_gets_the_same_loss_and_gradient():
    image, teacher = logits(6, 4, dtype=torch.float32)
    student = torch.nn.Linear(4, 4)

    def loss_of(image):
        return SoftTarget(2.0)(student(image), teacher)

    losses = [step(image.detach()) for step in (loss_of, torch.compile(loss_of, backend="aot_eager"))]
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(grad(loss, student.weight) for loss in losses), rtol=1e-5, atol=1e-7)
