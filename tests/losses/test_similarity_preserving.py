import math

import pytest
import torch
from torch.autograd import grad, gradcheck

from losses import SimilarityPreserving


def layers(n=5):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(n, 4, 3, 2, generator=generator, dtype=torch.float64)
    return student.requires_grad_(), torch.randn(n, 7, generator=generator, dtype=torch.float64)


def similarities(layer):
    rows = layer.flatten(1).tolist()
    products = [[sum(x * y for x, y in zip(a, b)) for b in rows] for a in rows]
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in products]


def test_it_is_the_squared_distance_of_row_normalised_products_over_b_squared():
    student, teacher = layers()
    pairs = zip(similarities(student), similarities(teacher))
    expected = sum((a - b) ** 2 for s, t in pairs for a, b in zip(s, t)) / 25
    assert SimilarityPreserving()(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_gradient_passes_gradcheck():
    student, teacher = layers(3)
    assert gradcheck(lambda s: SimilarityPreserving()(s, teacher), student)


def test_turning_and_scaling_all_images_changes_nothing():
    student, teacher = layers()
    turn, _ = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    expected = SimilarityPreserving()(student, teacher)
    torch.testing.assert_close(SimilarityPreserving()(student, 3 * teacher @ turn), expected, rtol=1e-12, atol=0)


def test_an_image_that_is_zero_gets_a_gradient_of_the_size_of_the_others():
    student, teacher = layers()
    dead = student.detach().clone()
    dead[1] = 0
    dead.requires_grad_()
    (gradient,) = grad(SimilarityPreserving()(dead, teacher), dead)
    assert gradient.isfinite().all()
    assert gradient[1].norm() < 100 * gradient[0].norm()
