"""The scores against their definitions, closed forms, and the numbers that published implementations give.

The published numbers were made with numpy 2.4 and scikit-learn 1.9 on ``fixed_input`` by the code of

- thuml/Transfer-Learning-Library (tllib/ranking): ``regularized_h_score``, ``log_maximum_evidence`` and
  ``log_expected_empirical_prediction``;
- thuml/LogME: ``LogME.fit`` with its fixed point, and ``_fit_icml``;

with numba's decorator left out, which changes no number. Neither package is a dependency.
"""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from torch.nn import functional as F

from recipes.evaluation.transferability import h_score, leep, log_me

CLASSES = 4


def fixed_input(images, width):
    """Features that are irregular numbers in [-1, 1], and two that know something of the class."""
    label = np.arange(images) % CLASSES
    feature = np.sin(np.arange(images * width).reshape(images, width) ** 2 * 0.1)
    feature[:, 0] += label
    feature[:, 1] -= 0.5 * label**2
    return torch.tensor(feature), torch.tensor(label)


def source_probabilities(feature):
    """Of a source classifier with six classes."""
    return (2 * feature[:, :6]).softmax(1)


SIZES = [(60, 8), (24, 40)]  # images, features: more images than features, and fewer


# H-score


@pytest.mark.parametrize("size", SIZES)
def test_h_score_is_the_trace_of_its_definition(size):
    feature, label = fixed_input(*size)
    shrunk = LedoitWolf().fit(feature.numpy())
    mean = feature.mean(0)
    between = torch.zeros(size[1], size[1], dtype=torch.float64)
    for image in range(size[0]):
        offset = feature[label == label[image]].mean(0) - mean
        between += torch.outer(offset, offset) / size[0]
    inverse = torch.tensor(np.linalg.inv(shrunk.covariance_))
    expected = (1 - shrunk.shrinkage_) * float(torch.trace(inverse @ between))
    assert h_score(feature, label) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("size", "published"), [(SIZES[0], 1.1122590549903837), (SIZES[1], 1.9964416185636107)])
def test_h_score_is_that_of_tllib(size, published):
    """Which divides the covariance of the class means by N - 1 and that of the features by N."""
    images = size[0]
    assert h_score(*fixed_input(*size)) * images / (images - 1) == pytest.approx(published, rel=1e-10)


def test_h_score_is_nearly_the_number_of_classes_less_one_where_they_are_far_apart():
    label = torch.arange(2000) % 3
    generator = torch.Generator().manual_seed(0)
    feature = 1e3 * torch.eye(3)[label] + torch.randn(2000, 3, generator=generator)
    # between the classes there are 3 - 1 dimensions; Ledoit and Wolf's shrinkage of 3 features by 2,000 images is small
    assert h_score(feature, label) == pytest.approx(2, abs=0.01)


def test_h_score_is_zero_where_the_classes_have_the_same_mean():
    feature = torch.tensor([[1.0, 0], [-1, 0], [0, 2], [0, -2]])
    assert h_score(feature, torch.tensor([0, 0, 1, 1])) == pytest.approx(0, abs=1e-12)


def test_h_score_of_features_that_say_nothing_is_zero():
    assert h_score(torch.ones(6, 3), torch.arange(6) % 2) == 0


def test_h_score_of_one_feature_is_the_share_of_its_variance_between_classes():
    feature, label = torch.tensor([[0.0], [1], [4], [5]]), torch.tensor([0, 0, 1, 1])
    assert h_score(feature, label) == pytest.approx(4 / 4.25)  # means 0.5 and 4.5, variance 4.25


# LogME


def slow_log_me(feature, label):
    """The evidence as a density of N dimensions, maximised by search, for each class."""
    gram = (feature @ feature.T).numpy()
    images = len(label)

    def negative(log_t, y):
        covariance = np.eye(images) + gram / np.exp(log_t)
        noise = y @ np.linalg.solve(covariance, y) / images  # 1 / β, best for this t
        return -multivariate_normal.logpdf(y, np.zeros(images), noise * covariance) / images

    best = []
    for number in range(CLASSES):
        y = (label == number).double().numpy()
        start = min(np.linspace(-12, 40, 105), key=lambda log_t: negative(log_t, y))
        found = minimize_scalar(negative, args=(y,), bounds=(start - 1, start + 1), options={"xatol": 1e-9})
        best.append(-found.fun)
    return np.mean(best)


@pytest.mark.parametrize("size", SIZES)
def test_log_me_is_the_largest_evidence_for_which_one_can_search(size):
    feature, label = fixed_input(*size)
    assert log_me(feature, label, CLASSES) == pytest.approx(slow_log_me(feature, label), abs=1e-8)


@pytest.mark.parametrize(
    ("size", "published", "tolerance"),
    [
        ((60, 8), -0.541467939301582, 1e-5),  # TLlib, which stops where t changes by less than 1 %
        ((60, 8), -0.5418204648746242, 1e-3),  # LogME, which adds 1e-5 to both denominators: too much for this size
        ((60, 8), -0.5421881155253081, 1e-3),  # LogME, the algorithm of the first paper, with the same 1e-5
        ((24, 40), -0.6154915904001749, 1e-2),  # TLlib, which ends after 11 iterations
        ((24, 40), -0.6157413614347195, 1e-2),  # LogME, the algorithm of the first paper
    ],
)
def test_log_me_is_that_of_published_code_within_its_precision(size, published, tolerance):
    """With fewer images than features, LogME's fixed point gives 1.57: it leaves out F - N terms of a determinant."""
    ours = log_me(*fixed_input(*size), CLASSES)
    assert published - 1e-9 <= ours == pytest.approx(published, abs=tolerance)  # none finds a larger evidence


def test_log_me_does_not_change_with_the_scale_of_the_features():
    feature, label = fixed_input(60, 8)
    assert log_me(1000 * feature, label, CLASSES) == pytest.approx(log_me(feature, label, CLASSES), abs=1e-9)


def test_log_me_of_features_that_say_nothing_is_that_of_noise_alone():
    label = torch.tensor([0, 0, 0, 1])
    evidence = [-(math.log(2 * math.pi * n / 4) + 1) / 2 for n in (3, 1)]  # y² has mean n / 4
    assert log_me(torch.zeros(4, 3), label, 2) == pytest.approx(sum(evidence) / 2)


def test_log_me_of_an_exact_fit_is_finite_and_larger_than_that_of_a_noisy_one():
    label = torch.arange(40) % 4
    exact = torch.eye(4)[label]
    noisy = exact + 0.1 * torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    assert math.inf > log_me(exact, label, 4) > log_me(noisy, label, 4) > log_me(torch.ones(40, 4), label, 4)


def test_log_me_leaves_out_classes_without_images():
    feature, label = fixed_input(60, 8)
    assert log_me(feature, label, CLASSES + 3) == log_me(feature, label, CLASSES)


# LEEP


def slow_leep(probability, label, classes):
    images, sources = probability.shape
    total = 0.0
    for i in range(images):
        expected = 0.0
        for z in range(sources):
            mass = sum(float(probability[j, z]) for j in range(images))
            joint = sum(float(probability[j, z]) for j in range(images) if label[j] == label[i])
            expected += joint / mass * float(probability[i, z]) if mass else 0.0
        total += math.log(expected)
    return total / images


@pytest.mark.parametrize("size", SIZES)
def test_leep_is_its_definition(size):
    feature, label = fixed_input(*size)
    probability = source_probabilities(feature)
    assert leep(probability, label, CLASSES) == pytest.approx(slow_leep(probability, label, CLASSES), rel=1e-12)


@pytest.mark.parametrize(("size", "published"), [(SIZES[0], -1.086029947722662), (SIZES[1], -0.9916265561609912)])
def test_leep_is_that_of_tllib(size, published):
    feature, label = fixed_input(*size)
    assert leep(source_probabilities(feature), label, CLASSES) == pytest.approx(published, rel=1e-12)


def test_leep_is_zero_where_the_source_class_says_the_target_class():
    label = torch.tensor([0, 1, 2, 0, 1, 2])
    assert leep(F.one_hot(torch.tensor([4, 0, 2, 3, 0, 2]), 6).float(), label, 3) == 0


def test_leep_of_a_source_that_says_nothing_is_minus_the_entropy_of_the_labels():
    label = torch.tensor([0, 0, 0, 1])
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert leep(torch.full((4, 5), 0.2), label, 2) == pytest.approx(-entropy)


def test_source_classes_without_any_probability_play_no_part():
    feature, label = fixed_input(60, 8)
    probability = source_probabilities(feature)
    with_empty = torch.cat([probability, torch.zeros(60, 2)], 1)
    assert leep(with_empty, label, CLASSES) == pytest.approx(leep(probability, label, CLASSES))


# What cannot be measured


@pytest.mark.parametrize(
    ("feature", "label", "words"),
    [
        (torch.rand(3, 2), torch.tensor([0, 1]), "must be \\[N, F\\] and \\[N\\]"),
        (torch.rand(0, 2), torch.tensor([], dtype=torch.int64), "at least one image"),
        (torch.rand(2, 2), torch.tensor([0, -1]), "leave out images without a label"),
        (torch.rand(2, 2), torch.tensor([0, 2]), "from 0 to 1"),
    ],
)
def test_features_and_labels_that_do_not_fit_are_refused(feature, label, words):
    for score in (log_me, leep):
        with pytest.raises(ValueError, match=words):
            score(feature, label, 2)
