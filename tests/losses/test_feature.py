"""What holds for every loss on layers."""

import pytest
import torch

from losses import (
    AttentionTransfer,
    DecoupledSoftTarget,
    FeatureLoss,
    Hint,
    RelationalAngle,
    RelationalDistance,
    SimilarityPreserving,
)

LABEL = torch.tensor([0, 1, 2, 3, 4, 6])
ALL = [AttentionTransfer, Hint, RelationalAngle, RelationalDistance, SimilarityPreserving, DecoupledSoftTarget]


def waves(*shape, pitch):
    """Numbers that are the same everywhere, without a random generator."""
    n = torch.Size(shape).numel()
    return torch.sin(pitch * torch.arange(1, n + 1, dtype=torch.float64) ** 1.5).view(shape)


def built(kind, dtype=torch.float64):
    shapes = ((7,), (7,)) if kind is DecoupledSoftTarget else ((4, 3, 3), (5, 3, 3))
    torch.manual_seed(0)
    loss = kind()
    loss.build(*shapes, images=6)
    needed = {"label": LABEL} if loss.needs else {}
    student, teacher = waves(6, *shapes[0], pitch=0.7), waves(6, *shapes[1], pitch=1.3)
    return loss.to(dtype), student.to(dtype).requires_grad_(), teacher.to(dtype), needed


@pytest.mark.parametrize("kind", ALL)
def test_it_is_a_feature_loss_whose_value_falls_along_its_gradient(kind):
    loss, student, teacher, needed = built(kind)
    assert isinstance(loss, FeatureLoss)
    value = loss(student, teacher, **needed)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.dtype == torch.float64
    assert loss(student - 1e-3 * gradient / gradient.norm(), teacher, **needed) < value


@pytest.mark.parametrize("kind", [kind for kind in ALL if kind is not Hint])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_student_that_equals_its_teacher_has_no_loss(kind, dtype):
    loss, student, _, needed = built(kind, dtype)
    value = loss(student, student.detach().clone(), **needed)
    assert value == 0
    gradient = torch.autograd.grad(value, student)[0]
    assert gradient.abs().max() <= 10 * torch.finfo(dtype).eps  # of 8 T times differences of probabilities


@pytest.mark.parametrize("kind", ALL)
def test_the_teacher_gets_no_gradient(kind):
    loss, student, teacher, needed = built(kind)
    loss(student, teacher.requires_grad_(), **needed).backward()
    assert student.grad.any()
    assert teacher.grad is None


@pytest.mark.parametrize("kind", ALL)
def test_half_precision_is_computed_in_float32_also_under_autocast(kind):
    loss, student, teacher, needed = built(kind, torch.float32)
    student, teacher = student.detach().bfloat16().requires_grad_(), teacher.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student, teacher, **needed)
        (gradient,) = torch.autograd.grad(value, student)
    assert value.dtype == torch.float32
    assert gradient.dtype == torch.bfloat16
    assert gradient.isfinite().all()
    assert gradient.any()
    torch.testing.assert_close(value, loss(student.float(), teacher.float(), **needed), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (AttentionTransfer, 0.018721771498259324),  # torchdistill 1.1.4, ATLoss(mode="code")
        (RelationalDistance, 0.006472094945314548),  # torchdistill 1.1.4, RKDLoss, which is the authors' code
        (RelationalAngle, 0.006494640365134678),
        (
            SimilarityPreserving,
            0.03729421190672433,
        ),  # RepDistiller 1e2f816, Similarity; torchdistill's rows have an L1 norm of one
        (DecoupledSoftTarget, 2.3076267276104856),  # mdistiller e8c5bb3, dkd_loss(..., alpha=1, beta=8, temperature=4)
    ],
)
def test_values_are_those_of_published_code(kind, value):
    loss, student, teacher, needed = built(kind)
    assert loss(student, teacher, **needed).item() == pytest.approx(value, rel=1e-10)
