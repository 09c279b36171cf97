import math

import pytest
import torch
from torch.autograd import grad, gradcheck

from losses import DecoupledSoftTarget, SoftTarget

LABEL = torch.tensor([0, 4, 2, -1, 6, -1])


def logits(dtype=torch.float64, spread=3.0):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 6, 7, generator=generator, dtype=torch.float64) * spread).to(dtype)
    return student.requires_grad_(), teacher


def softmax(row):
    return [math.exp(x) / sum(math.exp(y) for y in row) for x in row]


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def slow(student, teacher, label, temperature, target_weight, non_target_weight):
    """Target against the rest, and the rest among themselves, image by image, without T²."""
    terms = []
    for s, t, y in zip(student.tolist(), teacher.tolist(), label.tolist()):
        if y >= 0:
            s, t = (softmax([x / temperature for x in row]) for row in (s, t))
            target = divergence([t[y], 1 - t[y]], [s[y], 1 - s[y]])
            s, t = ([x / (1 - row[y]) for i, x in enumerate(row) if i != y] for row in (s, t))
            terms.append(target_weight * target + non_target_weight * divergence(t, s))
    return sum(terms) / len(terms)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("weights", [(1.0, 8.0), (1.0, 0.0), (0.0, 2.0)])
def test_it_is_the_two_divergences_of_the_labelled_images(temperature, weights):
    student, teacher = logits()
    expected = slow(student, teacher, LABEL, temperature, *weights)
    loss = DecoupledSoftTarget(temperature, *weights, scale_t2=False)
    assert loss(student, teacher, label=LABEL).item() == pytest.approx(expected, rel=1e-9)
    loss.scale_t2 = True
    assert loss(student, teacher, label=LABEL).item() == pytest.approx(expected * temperature**2, rel=1e-9)


def test_weighted_by_the_doubt_of_the_teacher_the_parts_make_the_soft_target():
    """Their paper's decomposition: KL = KL of the target + (1 - p of the target) KL of the others, for one image."""
    student, teacher = (x[:1].detach().requires_grad_() for x in logits())
    doubt = 1 - (teacher / 4).softmax(1)[0, 2].item()
    label = torch.tensor([2])
    decoupled = DecoupledSoftTarget(4.0, 1.0, doubt)(student, teacher, label=label)
    (gradient,), (expected,) = grad(decoupled, student), grad(SoftTarget(4.0)(student, teacher), student)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)


def test_gradient_passes_gradcheck():
    student, teacher = logits()
    assert gradcheck(lambda s: DecoupledSoftTarget()(s, teacher, label=LABEL), student)


def test_unlabelled_images_take_no_part():
    student, teacher = logits()
    loss = DecoupledSoftTarget()(student, teacher, label=LABEL)
    labelled = LABEL >= 0
    alone = DecoupledSoftTarget()(student[labelled], teacher[labelled], label=LABEL[labelled])
    assert loss.item() == pytest.approx(alone.item(), rel=1e-12)
    assert not grad(loss, student)[0][~labelled].any()


def test_without_a_labelled_image_there_is_no_loss_and_no_gradient():
    student, teacher = logits()
    loss = DecoupledSoftTarget()(student, teacher, label=torch.full((6,), -1))
    assert loss == 0
    assert not grad(loss, student)[0].any()


@pytest.mark.parametrize("spread", [1.0, 100.0, 1e4])
@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_value_and_gradient_are_right_in_float32_of_the_most_confident(spread, temperature):
    student, teacher = logits(torch.float32, spread)
    wide = student.detach().double().requires_grad_()
    loss = DecoupledSoftTarget(temperature)
    value, expected = loss(student, teacher, label=LABEL), loss(wide, teacher.double(), label=LABEL)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=0)
    (gradient,), (right,) = grad(value, student), grad(expected, wide)
    torch.testing.assert_close(gradient.double(), right, rtol=0, atol=1e-3 * right.abs().max().item())
    assert gradient[LABEL >= 0].any(1).all()  # published code has log 0 and a mask of -1000 here


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", 0.0), ("target_weight", -1.0), ("non_target_weight", math.nan)]
)
def test_impossible_options_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} is"):
        DecoupledSoftTarget(**{option: value})


def test_logits_of_different_classes_are_refused():
    with pytest.raises(ValueError, match=r"\[6, 7\] of the student, \[6, 5\] of the teacher"):
        DecoupledSoftTarget()(torch.ones(6, 7), torch.ones(6, 5), label=LABEL)
