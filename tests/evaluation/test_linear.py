import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from torch import Tensor

from recipes.evaluation import fit_svm, linear, linear_probe
from recipes.evaluation.features import Features
from recipes.evaluation.few_labels import few_label_draws


def features(feature: Tensor, label: Tensor) -> Features:
    return Features(feature, label, torch.arange(len(label)))


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


def test_logistic_regression_finds_the_weights_of_scikit_learn() -> None:
    bank = random_features(80, 0)
    weight, bias = linear._logistic_regression(
        lambda: [(bank.feature[None], bank.label[None])], (1, 80, 6), 4, l2=1.0, max_iterations=200
    )
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


def test_linear_probe_refuses_no_penalty() -> None:
    bank = random_features(1, 0, classes=1)
    with pytest.raises(ValueError, match="l2 is 0"):
        linear_probe(bank, bank, 1, l2=0)


# Support vector machines


def blobs(n, classes=3, width=6, seed=0):
    """Features of overlapping classes, of very different scales, and one that is constant."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    label = torch.arange(n) % classes
    feature = centres[label] + torch.randn(n, width, generator=generator)
    feature = feature * 10.0 ** torch.arange(-2, width - 2) + 7
    feature[:, 3] = 5.0
    return feature, label


@pytest.mark.parametrize("classes", [2, 3])
def test_the_solution_is_where_the_gradient_of_the_objective_is_zero(classes):
    feature, label = blobs(90, classes)
    C = 0.1
    fit = fit_svm(feature, label, None, None, classes, grid=(C,))
    x = feature.double()
    std = x.std(0, correction=0)
    std[3] = 1
    w, b = fit.weight * std, fit.bias + fit.weight @ x.mean(0)  # for standardised features
    x = (x - x.mean(0)) / std
    for k in range(classes):
        gradient_w, gradient_b = w[k].clone(), b[k].clone()
        for image, own in zip(x, label):
            y = 1 if own == k else -1
            violation = max(0.0, 1 - y * (image @ w[k] + b[k]).item())
            gradient_w -= 2 * C * violation * y * image
            gradient_b -= 2 * C * violation * y
        assert gradient_w.abs().max() < 1e-2 < w[k].abs().max()
        assert gradient_b.abs() < 1e-2


def test_two_images_are_told_apart_as_in_closed_form():
    for C in (0.01, 1.0, 10.0):
        fit = fit_svm(torch.tensor([[1.0], [5.0]]), torch.tensor([0, 1]), None, None, 2, grid=(C,))
        w = 4 * C / (1 + 4 * C)  # minimises w²/2 + 2 C (1 - w)²; standardised images are -1 and 1
        assert fit.weight.flatten().tolist() == pytest.approx([-w / 2, w / 2], rel=1e-3)
        assert fit.bias.tolist() == pytest.approx([w * 3 / 2, -w * 3 / 2], rel=1e-3)


def test_a_linear_layer_gives_the_decision_values_of_scikit_learn():
    feature, label = blobs(200)
    test, _ = blobs(50, seed=5)
    fit = fit_svm(feature, label, None, None, 3, grid=(0.01,))
    machine = make_pipeline(StandardScaler(), LinearSVC(C=0.01, dual=False)).fit(feature.double().numpy(), label)
    expected = machine.decision_function(test.double().numpy())
    np.testing.assert_allclose((test.double() @ fit.weight.T + fit.bias).numpy(), expected, atol=1e-6)


def test_the_smallest_of_the_best_values_of_c_on_validation_images_is_chosen():
    feature, label = blobs(60, seed=1)
    val_feature, val_label = blobs(40, seed=2)
    grid = (10.0, 1e-3, 1e-5, 0.1)
    fit = fit_svm(feature, label, val_feature, val_label, 3, grid)
    expected = {}
    for c in grid:
        machine = make_pipeline(StandardScaler(), LinearSVC(C=c, dual=False)).fit(feature.double().numpy(), label)
        expected[c] = (machine.predict(val_feature.double().numpy()) == val_label.numpy()).mean()
    assert fit.accuracies == pytest.approx(expected)
    best = [c for c in grid if expected[c] == max(expected.values())]
    chosen = fit.C
    assert chosen == min(best)
    same = fit_svm(feature, label, feature[:3], label[:3], 3, grid=(0.1, 0.05, 0.2))
    assert len(set(same.accuracies.values())) == 1
    assert same.C == 0.05


def test_without_validation_images_c_is_chosen_by_cross_validation():
    feature, label = blobs(60, seed=1)
    grid = (1e-6, 1e-3, 0.1)
    fit = fit_svm(feature, label, None, None, 3, grid)
    x = StandardScaler().fit_transform(feature.double().numpy())
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    expected = {c: cross_val_score(LinearSVC(C=c, dual=False), x, label, cv=folds).mean() for c in grid}
    assert fit.accuracies == pytest.approx(expected)
    best = [c for c in grid if expected[c] == max(expected.values())]
    chosen = fit.C
    assert chosen == min(best)
    torch.testing.assert_close(fit.weight, fit_svm(feature, label, None, None, 3, (fit.C,)).weight)


def test_images_without_a_label_take_no_part():
    feature, label = blobs(60)
    hidden = label.clone()
    hidden[40:] = -1
    val = blobs(30, seed=3)
    half_labelled = val[1].clone()
    half_labelled[20:] = -1
    ours = fit_svm(feature, hidden, val[0], half_labelled, 3)
    theirs = fit_svm(feature[:40], label[:40], val[0][:20], val[1][:20], 3)
    assert torch.equal(ours.weight, theirs.weight)
    assert ours.accuracies == theirs.accuracies
    no_val = fit_svm(feature, label, val[0], torch.full_like(val[1], -1), 3, (0.1, 1.0))
    assert no_val.accuracies == fit_svm(feature, label, None, None, 3, (0.1, 1.0)).accuracies


def test_a_class_without_training_images_is_never_predicted():
    feature, label = blobs(60)
    label = torch.tensor([0, 2, 4])[label]
    fit = fit_svm(feature, label, None, None, 5)
    assert fit.weight.shape == (5, 6)
    assert fit.bias.isneginf().tolist() == [False, True, False, True, False]
    scores = torch.randn(1000, 6, dtype=torch.float64) * 1e4 @ fit.weight.T + fit.bias
    assert set(scores.argmax(1).tolist()) == {0, 2, 4}


def test_with_one_image_of_each_class_there_is_no_choice():
    feature, label = blobs(3)
    fit = fit_svm(feature, label, None, None, 3, (0.1, 1.0, 10.0))
    assert fit.C == 1.0
    assert fit.accuracies == {}
    assert ((feature.double() @ fit.weight.T + fit.bias).argmax(1) == label).all()


@pytest.mark.parametrize("iterations", [None, 2])
def test_fewer_images_than_similar_features_and_a_large_c_are_solved_or_said_in_a_line(iterations, caplog, monkeypatch):
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    if iterations is not None:
        monkeypatch.setattr("recipes.evaluation.svm._ITERATIONS", iterations)
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(60, 10, generator=generator) @ torch.randn(10, 80, generator=generator)
    feature = feature + 0.05 * torch.randn(60, 80, generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_svm(feature, torch.arange(60) % 3, None, None, 3, grid=(10.0,))
    lines = [line for line in caplog.messages if "C = 10 was stopped after" in line]
    assert len(lines) == (iterations is not None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"label": torch.zeros(60, dtype=torch.int64)}, "are of 1 class: a support vector machine tells at least two"),
        ({"label": torch.full((60,), -1)}, "are of 0 classes"),
        ({"feature": torch.full((60, 6), float("nan"))}, "not finite"),
        ({"grid": ()}, "at least one value of C"),
        ({"grid": (1.0, 0.0)}, "all positive"),
    ],
)
def test_what_cannot_be_solved_is_refused(changed, message):
    feature, label = blobs(60)
    given = {"feature": feature, "label": label, "grid": (1.0,), **changed}
    with pytest.raises(ValueError, match=message):
        fit_svm(val_feature=None, val_label=None, num_classes=3, **given)


def test_a_svm_whose_features_would_take_too_much_memory_is_solved_on_a_subset_that_it_names() -> None:
    bank, val = random_features(90, 0), random_features(40, 1)
    label = bank.label.clone()
    label[:6] = -1
    third = slice(6, None, 3)
    bound = {"max_bytes": 8 * 6 * 84 // 3, "grid": (0.01, 1.0)}
    found = fit_svm(bank.feature, label, val.feature, val.label, 4, **bound)
    expected = fit_svm(bank.feature[third], label[third], val.feature, val.label, 4, grid=bound["grid"])
    assert torch.equal(found.weight, expected.weight)
    assert found.accuracies == expected.accuracies
    assert (found.subset, expected.subset) == ("one of every 3 labelled images: 28 of 84", "")
