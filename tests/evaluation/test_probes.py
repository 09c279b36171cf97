import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from recipes.evaluation import probes
from recipes.evaluation.features import Features
from recipes.evaluation.probes import accuracy, few_label_draws, knn, linear_probe


def features(feature: Tensor, label: Tensor) -> Features:
    return Features(feature, label, torch.arange(len(label)))


def on_circle(degrees: list[float], label: list[int], length: float = 1.0) -> Features:
    angle = torch.tensor(degrees).deg2rad()
    return features(length * torch.stack([angle.cos(), angle.sin()], dim=1), torch.tensor(label))


def random_features(n: int, seed: int, classes: int = 4, dim: int = 6) -> Features:
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    return features(feature, torch.randint(classes, (n,), generator=generator))


@pytest.fixture(scope="module")
def digits() -> tuple[Features, Features]:
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    feature, label = torch.tensor(data.data[order] / 16, dtype=torch.float32), torch.tensor(data.target[order])
    return features(feature[:1000], label[:1000]), features(feature[1000:], label[1000:])


def standardised(bank: Features, query: Features) -> tuple[np.ndarray, np.ndarray]:
    x, z = bank.feature.double().numpy(), query.feature.double().numpy()
    std = x.std(0)
    std[std == 0] = 1
    return (x - x.mean(0)) / std, (z - x.mean(0)) / std


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
    monkeypatch.setattr(probes, "_CHUNK", 3 * 60)
    assert torch.equal(knn(bank, query, 4, k=5), whole)


def test_knn_of_draws_is_that_of_each_drawn_bank() -> None:
    bank, query = random_features(60, 0), random_features(25, 1)
    draws = few_label_draws(bank.label, 4, 3, 5)
    for prediction, rows in zip(knn(bank, query, 4, draws=draws), draws):
        assert torch.equal(prediction, knn(Features(*(x[rows] for x in bank)), query, 4))


def test_logistic_regression_finds_the_weights_of_scikit_learn() -> None:
    bank = random_features(80, 0)
    weight, bias = probes._logistic_regression(bank.feature[None], bank.label[None], 4, l2=1.0, max_iterations=200)
    theirs = LogisticRegression(C=1, tol=1e-10, max_iter=10_000).fit(bank.feature.numpy(), bank.label.numpy())
    np.testing.assert_allclose(weight[0].T.numpy(), theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(
        (bias[0, 0] - bias.mean()).numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-3
    )


def test_linear_probe_classifies_digits_as_scikit_learn_does(digits: tuple[Features, Features]) -> None:
    bank, query = digits
    x, z = standardised(bank, query)
    theirs = LogisticRegression(C=1, tol=1e-8, max_iter=10_000).fit(x, bank.label.numpy()).predict(z)
    assert (linear_probe(bank, query, 10).numpy() == theirs).mean() > 0.998


@pytest.mark.parametrize("per_class", [1, 5, 9])  # fewer images than features, and more
def test_linear_probe_of_few_labels_classifies_digits_as_scikit_learn_does(
    digits: tuple[Features, Features], per_class: int
) -> None:
    bank, query = digits
    x, z = standardised(bank, query)  # by all images, labelled or not
    draws = few_label_draws(bank.label, 10, per_class, 4)
    for prediction, rows in zip(linear_probe(bank, query, 10, draws), draws):
        theirs = LogisticRegression(C=1, tol=1e-8, max_iter=10_000).fit(x[rows], bank.label[rows].numpy())
        assert (prediction.numpy() == theirs.predict(z)).mean() > 0.995


def test_linear_probe_does_not_depend_on_the_scale_of_features(digits: tuple[Features, Features]) -> None:
    bank, query = digits
    scale, shift = torch.logspace(-3, 3, 64), torch.linspace(-2, 2, 64)
    there = [part._replace(feature=part.feature * scale + shift * scale) for part in digits]
    assert (linear_probe(*there, 10) == linear_probe(bank, query, 10)).float().mean() > 0.995


def test_linear_probe_works_where_the_trainer_validates(digits: tuple[Features, Features]) -> None:
    bank, query = digits
    expected = linear_probe(bank, query, 10)
    with torch.inference_mode():
        inside = [Features(*(x.clone() for x in part)) for part in digits]
        assert torch.equal(linear_probe(*inside, 10), expected)
    with torch.no_grad():
        assert torch.equal(linear_probe(bank, query, 10), expected)


def test_linear_probe_takes_classes_that_do_not_occur() -> None:
    bank = features(torch.tensor([[-1.0], [1.0], [-2.0], [2.0]]), torch.tensor([1, 3, 1, 3]))
    assert linear_probe(bank, bank, 5).tolist() == [1, 3, 1, 3]


def test_draws_are_balanced_and_never_take_an_image_twice_or_without_label() -> None:
    labels = torch.tensor([2, -1, 0, 1, 2, 0, -1, 1, 1, 2, 0, 0])
    draws = few_label_draws(labels, 3, 2, 30)
    assert draws.shape == (30, 6)
    for rows in draws:
        assert labels[rows].tolist() == [0, 0, 1, 1, 2, 2]
        assert len(rows.unique()) == 6


def test_draws_are_a_function_of_the_seed_alone() -> None:
    labels = torch.arange(1000) % 10
    torch.manual_seed(1)
    first = few_label_draws(labels, 10, 5, 20, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(few_label_draws(labels, 10, 5, 20, seed=3), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(few_label_draws(labels, 10, 5, 7, seed=3), first[:7])
    assert not torch.equal(few_label_draws(labels, 10, 5, 20, seed=4), first)
    assert len({tuple(rows.tolist()) for rows in first}) == 20


def test_draws_take_every_image_equally_often() -> None:
    draws = few_label_draws(torch.zeros(20, dtype=torch.int64), 1, 5, 4000)
    count = draws.flatten().bincount(
        minlength=20
    )  # binomial: mean 1000, standard deviation sqrt(4000 · 1/4 · 3/4) = 27
    assert (count - 1000).abs().max() < 5 * 27


def test_draws_name_the_class_that_has_too_few_images() -> None:
    labels = torch.tensor([0, 0, 1, -1])
    with pytest.raises(ValueError, match=r"class 1 \(cat\) has 1 labelled images, a draw needs 2"):
        few_label_draws(labels, 2, 2, 20, names=["dog", "cat"])
    with pytest.raises(ValueError, match="class 2 has 0 labelled images"):
        few_label_draws(labels, 3, 1, 20)


def test_accuracy_is_the_share_of_images_whatever_their_class() -> None:
    assert accuracy(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 2]), 5) == 0.5


@pytest.mark.parametrize("wrong", [{"k": 0}, {"temperature": 0.0}, {"temperature": float("nan")}])
def test_knn_refuses_numbers_that_are_not_positive(wrong: dict[str, float]) -> None:
    bank = on_circle([0], [0])
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is"):
        knn(bank, bank, 1, **wrong)


def test_linear_probe_refuses_no_penalty() -> None:
    bank = on_circle([0], [0])
    with pytest.raises(ValueError, match="l2 is 0"):
        linear_probe(bank, bank, 1, l2=0)
