import math

import pytest
import torch
from torch import Tensor

from recipes.evaluation import chunks, knn, leave_one_out
from recipes.evaluation.features import Features
from recipes.evaluation.few_labels import few_label_draws


def features(feature: Tensor, label: Tensor) -> Features:
    return Features(feature, label, torch.arange(len(label)))


def on_circle(degrees: list[float], label: list[int], length: float = 1.0) -> Features:
    angle = torch.tensor(degrees).deg2rad()
    return features(length * torch.stack([angle.cos(), angle.sin()], dim=1), torch.tensor(label))


def random_features(n: int, seed: int, classes: int = 4, dim: int = 6) -> Features:
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return features(feature, torch.randint(classes, (n,), generator=generator))


@pytest.mark.parametrize("k", [1, 7, 50, 1000])
def test_knn_agrees_with_a_slow_loop(k: int) -> None:
    bank, query, temperature = random_features(60, 0), random_features(25, 1), 0.3
    expected = []
    for image in query.feature.tolist():
        scored = []
        for neighbour, label in zip(bank.feature.tolist(), bank.label.tolist()):
            dot = sum(a * b for a, b in zip(image, neighbour))
            scored.append((dot / math.hypot(*image) / math.hypot(*neighbour), label))
        votes = [0.0] * 4
        for similarity, label in sorted(scored, reverse=True)[:k]:
            votes[label] += math.exp(similarity / temperature)
        expected.append(votes.index(max(votes)))
    assert knn(bank, query, 4, k, temperature).tolist() == expected


def test_knn_weighs_a_near_neighbour_against_two_far_ones() -> None:
    # cos 10° = 0.985 and cos 30° = 0.866: the near one wins alone while exp((0.985 - 0.866) / temperature) > 2,
    # that is for temperatures below 0.119 / ln 2 = 0.171
    bank = on_circle([10, 30, -30], [1, 0, 0])
    query = on_circle([0], [0])
    assert knn(bank, query, 2, temperature=0.16).tolist() == [1]
    assert knn(bank, query, 2, temperature=0.18).tolist() == [0]


def test_knn_looks_at_angles_and_not_at_lengths() -> None:
    bank = features(torch.tensor([[100.0, 0.0], [0.1, 0.1]]), torch.tensor([0, 1]))
    assert knn(bank, on_circle([40], [1]), 2, k=1).tolist() == [1]


def test_knn_of_a_bank_smaller_than_k_lets_all_vote() -> None:
    bank, query = random_features(9, 0), random_features(30, 1)
    assert torch.equal(knn(bank, query, 4, k=200), knn(bank, query, 4, k=9))


def test_knn_takes_classes_that_the_images_to_classify_lack() -> None:
    bank, query = on_circle([0, 90], [0, 7]), on_circle([1, 2], [0, 0])
    assert knn(bank, query, 10).tolist() == [0, 0]


def test_knn_does_not_overflow_at_low_temperatures() -> None:
    bank, query = on_circle([0, 1, 2, 90], [3, 3, 3, 0]), on_circle([0.5], [3])
    assert knn(bank, query, 4, temperature=1e-4).tolist() == [3]


def test_knn_does_not_depend_on_how_many_images_are_classified_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    bank, query = random_features(60, 0), random_features(25, 1)
    whole = knn(bank, query, 4, k=5)
    monkeypatch.setattr(chunks, "BYTES", 7 * 6 * 8)  # seven images of the bank, and six to classify
    assert torch.equal(knn(bank, query, 4, k=5), whole)


def test_knn_of_draws_is_that_of_each_drawn_bank() -> None:
    bank, query = random_features(60, 0), random_features(25, 1)
    draws = few_label_draws(bank.label, 4, 3, 5)
    for prediction, rows in zip(knn(bank, query, 4, draws=draws), draws):
        assert torch.equal(prediction, knn(Features(*(x[rows] for x in bank)), query, 4))


@pytest.mark.parametrize("wrong", [{"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_knn_refuses_numbers_that_are_not_positive(wrong: dict[str, float]) -> None:
    bank = on_circle([0], [0])
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        knn(bank, bank, 1, **wrong)


@pytest.mark.parametrize("k", [1, 5, 100])
def test_each_image_is_classified_by_the_others_alone(k):
    (feature, label, _), classes = random_features(60, 0, dim=8), 4
    right = 0
    for image in range(60):
        others = torch.arange(60) != image
        bank = Features(feature[others], label[others], torch.arange(59))
        query = Features(feature[image : image + 1], label[image : image + 1], torch.arange(1))
        right += int(knn(bank, query, classes, k=k) == label[image])
    assert leave_one_out(feature, label, classes, k) == right / 60


def test_an_image_that_is_alone_in_its_class_is_never_right():
    feature = torch.eye(3)[[0, 0, 1]]
    assert leave_one_out(feature, torch.tensor([0, 0, 1]), 2, k=1) == pytest.approx(2 / 3)


def test_leave_one_out_does_not_depend_on_how_many_images_are_classified_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feature, label, _ = random_features(60, 0)
    whole = leave_one_out(feature, label, 4, k=5)
    monkeypatch.setattr(chunks, "BYTES", 7 * 6 * 8)
    assert leave_one_out(feature, label, 4, k=5) == whole


def test_one_image_has_no_neighbours():
    with pytest.raises(ValueError, match="two images"):
        leave_one_out(torch.rand(1, 2), torch.tensor([0]), 1, k=1)
