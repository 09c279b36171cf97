import math

import pytest
import torch
from torch.autograd import grad, gradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from losses import RelationalAngle, RelationalDistance, relational

LOSSES = [RelationalDistance(), RelationalAngle()]


def layers(n=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(n, 2, 3, generator=generator, dtype=torch.float64)
    teacher = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def huber(x):
    return x * x / 2 if abs(x) <= 1 else abs(x) - 0.5


def relative_distances(layer):
    rows = layer.flatten(1).tolist()
    distances = [[math.dist(a, b) for b in rows] for a in rows]
    pairs = [distances[i][j] for i in range(len(rows)) for j in range(len(rows)) if i != j]
    return [d * len(pairs) / sum(pairs) for row in distances for d in row]


def cosines(layer):
    """Of the angle at every j between every i and k; 0 where a side has no length."""
    rows = layer.flatten(1).tolist()
    found = []
    for at in rows:
        for a in rows:
            for b in rows:
                inner = sum((x - o) * (y - o) for x, y, o in zip(a, b, at))
                length = math.dist(a, at) * math.dist(b, at)
                found.append(inner / length if length else 0.0)
    return found


def slow(relation, student, teacher):
    terms = [huber(s - t) for s, t in zip(relation(student), relation(teacher), strict=True)]
    return sum(terms) / len(terms)


def test_distances_are_compared_relative_to_their_mean():
    student, teacher = layers()
    expected = slow(relative_distances, student, teacher)
    assert RelationalDistance()(student, teacher).item() == pytest.approx(expected, rel=1e-12)


def test_a_distance_that_is_off_by_more_than_the_mean_counts_linearly():
    student = torch.tensor([[0.0], [0.0], [10.0]], dtype=torch.float64)  # relative to 20/3: 0, 1.5, 1.5
    teacher = torch.tensor([[0.0], [10.0], [10.0]], dtype=torch.float64)  # 1.5, 1.5, 0
    assert RelationalDistance()(student, teacher).item() == pytest.approx(4 * (1.5 - 0.5) / 9, rel=1e-12)


@pytest.mark.parametrize("tile", [1, 2 * 25, 1000])
def test_angles_are_compared_at_every_image_between_every_two(tile, monkeypatch):
    monkeypatch.setattr(relational, "_tile_elements", lambda distances: tile)
    student, teacher = layers()
    expected = slow(cosines, student, teacher)
    assert RelationalAngle()(student, teacher).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tile", [1, 1000])
@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_passes_gradcheck(loss, tile, monkeypatch):
    """The mean distance has a gradient too: it moves with every image."""
    monkeypatch.setattr(relational, "_tile_elements", lambda distances: tile)
    student, teacher = layers(4)
    assert gradcheck(lambda s: loss(s, teacher), student)


@pytest.mark.parametrize("loss", LOSSES)
def test_moving_turning_and_scaling_all_images_changes_nothing(loss):
    student, teacher = layers()
    turn, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    moved = 0.3 * student.flatten(1) @ turn + torch.arange(6)
    torch.testing.assert_close(loss(moved, teacher), loss(student, teacher), rtol=1e-11, atol=0)
    torch.testing.assert_close(loss(moved, student), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-25)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("places", [[0, 0, 1, 2, 3], [0, 0, 0, 0, 0]])
def test_images_at_one_place_give_finite_gradients(loss, places):
    student, teacher = layers()
    together = student.detach()[places].requires_grad_()
    (gradient,) = grad(loss(together, teacher), together)
    assert gradient.isfinite().all()
    assert gradient.any() == (len(set(places)) > 1)
    (scaled,) = grad(loss(10 * together, teacher), together)
    torch.testing.assert_close(scaled, gradient, rtol=1e-9, atol=1e-14)  # that of the images, not of where they are


@pytest.mark.parametrize("loss", LOSSES)
def test_one_image_has_no_relations(loss):
    student, teacher = layers(1)
    value = loss(student, teacher)
    assert value == 0
    assert not grad(value, student)[0].any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("nearness", [1.0, 1e-3])
def test_value_and_gradient_are_right_in_float32_for_near_images_far_from_the_origin(loss, nearness):
    student, teacher = layers(12, torch.float32)
    student, teacher = student.detach() + 100, teacher + 100
    student[0], teacher[0] = student[1] + nearness * student[0] / 100, teacher[1] + nearness * teacher[0] / 100
    wide, student = student.double().requires_grad_(), student.requires_grad_()
    value, expected = loss(student, teacher), loss(wide, teacher.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=0)
    (gradient,), (right,) = grad(value, student), grad(expected, wide)
    torch.testing.assert_close(gradient.double(), right, rtol=0, atol=1e-3 * right.abs().max().item())


class LargestTensor(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
        return result


def test_triplets_are_never_stored(monkeypatch):
    monkeypatch.setattr(relational, "_tile_elements", lambda distances: 4 * 60 * 60)
    student, teacher = layers(60)
    with LargestTensor() as largest:
        RelationalAngle()(student, teacher).backward()
    assert largest.elements == 4 * 60 * 60
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        RelationalAngle()(student, teacher)
    assert 0 < max(kept) <= 60 * 60
