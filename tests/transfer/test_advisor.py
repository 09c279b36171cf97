import copy
import dataclasses
import itertools
import math
import os
import sys
from typing import get_args

import pytest
import torch
from lightning.pytorch import seed_everything
from sklearn.linear_model import LogisticRegression
from torch import nn

import recipes
from datamodules import Digits, ImagesInMemory, Splits
from datamodules.wrappers.subset import Subset
from recipes.augment import HandwritingViews
from recipes.evaluation import h_score, leave_one_out, leep, log_me, quiet_trainer
from recipes.nn import ConvNet, Encoder, stages
from recipes.nn.encoders.weights import normalization
from recipes.transfer import advisor
from recipes.transfer.advisor import (
    STRATEGIES,
    Advice,
    Comparison,
    Measurement,
    Scores,
    choose,
    measure,
    measurement,
    plan,
    rule,
    similar_from,
)
from recipes.transfer.verification import held, verify

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CPU = {"accelerator": "cpu"}
KNOWN, OTHER = [str(number) for number in range(5)], [str(number) for number in range(5, 10)]


def target(per_class=None, classes=OTHER):
    return Subset(Digits(8), classes, per_class, batch_size=50)


@pytest.fixture(scope="module")
def source():
    """A classifier of the digits 0 to 4."""
    seed_everything(0, verbose=False)
    recipe = recipes.Supervised(
        ConvNet((8, 16, 32)),
        5,
        views=HandwritingViews(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=1e-2),
        scheduler=None,
        lr_batch_size=None,
    )
    quiet_trainer(max_epochs=5, limit_val_batches=0, **CPU).fit(recipe, datamodule=target(classes=KNOWN))
    recipe.encoder.pretrained = True
    recipe.encoder.normalization = normalization(recipe.state_dict())
    return recipe.eval()


def features(encoder, images, mean, std):
    """Of all stages of a ConvNet, without what the advisor uses: stages end before a convolution."""
    x = (images.images(torch.arange(len(images))).float() / 255 - mean[0]) / std[0]
    found = []
    with torch.no_grad():
        for layer in encoder.network[:-2]:
            if isinstance(layer, nn.Conv2d) and x.shape[1] > 1:
                found.append(x.mean((2, 3)))
            x = layer(x)
    return [*found, x.mean((2, 3))]


def made(images_per_class=(100, 100), similarity=0.5, stage_knn=(0.5, 0.9), noise=0.0, **others):
    """A measurement with these numbers: a residual variance of 1 of random encoders, and 1 - similarity of ours.

    noise: standard deviation of the LogME of two random encoders.
    """
    ours = -math.log(1 - similarity) / 2 - 0.3
    return Measurement(
        **{
            "encoder": "resnet18",
            "pretrained": True,
            "class_names": tuple(str(i) for i in range(len(images_per_class))),
            "images_per_class": tuple(images_per_class),
            "images_used": sum(images_per_class),
            "k": 5,
            "scores": Scores(0.7, 1.0, ours),
            "random": Scores(0.5, 1.0, -0.3),
            "compared": Comparison(90, ours, (-0.3 - noise / math.sqrt(2), -0.3 + noise / math.sqrt(2))),
            "prior": -0.4,
            "leep": None,
            "stages": ("conv1", "layer1"),
            "stage_knn": stage_knn,
            **others,
        }
    )


# What is measured


def test_the_scores_are_those_of_the_features_of_the_labelled_training_images(source):
    data = target(20)
    found = measure("mine", source.encoder, data, quiet_trainer(**CPU), source.logits)
    label = data.splits.train.label
    each = features(source.encoder, data.splits.train, *source.encoder.normalization)
    assert found.scores.knn == leave_one_out(each[-1], label, 5, k=5)
    assert found.scores.h_score == pytest.approx(h_score(each[-1], label), rel=1e-4)
    assert found.scores.log_me == pytest.approx(log_me(each[-1], label, 5), abs=1e-4)
    assert found.stage_knn == pytest.approx([leave_one_out(feature, label, 5, k=5) for feature in each])
    with torch.no_grad():
        probability = source.head(each[-1]).softmax(1)
    assert found.leep == pytest.approx(leep(probability, label, 5), abs=1e-4)
    assert (found.images_per_class, found.images_used, found.k) == ((20,) * 5, 100, 5)
    assert found.class_names == tuple(OTHER)
    assert found.stages == tuple(stage.name for stage in stages(source.encoder))


def test_the_reference_is_the_network_with_random_weights_on_normalised_data(source):
    data = target(20)
    found = measure("mine", source.encoder, data)
    torch.manual_seed(0)
    random = ConvNet((8, 16, 32)).eval()
    feature = features(random, data.splits.train, data.mean, data.std)[-1]
    assert found.random.knn == leave_one_out(feature, data.splits.train.label, 5, k=5)
    assert found.random.log_me == pytest.approx(log_me(feature, data.splits.train.label, 5), abs=1e-4)
    assert found.leep is None  # without the classifier of the source


def test_measuring_changes_neither_the_encoder_nor_any_random_number(source):
    encoder = copy.deepcopy(source.encoder).train()
    before = copy.deepcopy(encoder.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    first = measure("mine", encoder, target(10))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, encoder.state_dict()[name]) for name, value in before.items())
    assert encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert first == measure("mine", encoder, target(10))


def test_of_many_images_the_same_number_of_each_class_is_measured(source):
    found = measure("mine", source.encoder, target(), most_images=52)
    assert found.images_used == 50
    assert found.images == sum(found.images_per_class) == len(target_label())


def target_label():
    data = target()
    data.setup()
    return data.splits.train.label


def test_small_classes_are_measured_whole_and_large_ones_share_the_rest():
    label = torch.cat([torch.full((n,), i) for i, n in enumerate((100, 3, 50))] + [torch.full((9,), -1)])
    label = label[torch.randperm(len(label), generator=torch.Generator().manual_seed(0))]
    rows = measurement.evenly(label, 44)
    assert torch.bincount(label[rows]).tolist() == [20, 3, 20]
    assert torch.equal(measurement.evenly(label, 153), (label >= 0).nonzero().flatten())


def test_few_neighbours_vote_where_a_class_has_few_images(source):
    assert measure("mine", source.encoder, target(3)).k == 2  # an image of a class of three has two of its own
    assert measure("mine", source.encoder, target(1)).k == 1


class Own(Encoder):
    """Around a network that somebody else has made."""


def test_a_network_that_cannot_be_reinitialised_is_compared_with_class_frequencies(source):
    encoder = Own(copy.deepcopy(source.encoder.network), 32, in_channels=1)
    found = measure("mine", encoder, target(10))
    assert (found.random, found.compared) == (None, None)
    assert found.prior == log_me(torch.ones(50, 1), torch.arange(50) % 5, 5)
    assert found.similarity == 1 - math.exp(-2 * (found.scores.log_me - found.prior))


@pytest.mark.parametrize("similarity", [0.0, 0.25, 0.9])
def test_similarity_is_the_share_of_the_residual_variance_that_the_weights_take_away(similarity):
    assert made(similarity=similarity).similarity == pytest.approx(similarity)


def test_similarity_is_near_that_of_least_squares_where_images_are_many():
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(4000) % 2
    signal = label[:, None] + 0.5 * torch.randn(4000, 1, generator=generator)
    noise = torch.randn(4000, 3, generator=generator)

    def residual(x):
        x = torch.cat([x, torch.ones(4000, 1)], 1).double()
        return (label - x @ torch.linalg.lstsq(x, label[:, None].double()).solution[:, 0]).var().item()

    ours, theirs = torch.cat([signal, noise], 1), noise
    one = torch.ones(4000, 1)
    ours_scored, theirs_scored = (log_me(torch.cat([x, one], 1), label, 2) for x in (ours, theirs))
    found = Comparison(4000, ours_scored, (theirs_scored,) * 2)
    assert found.similarity == pytest.approx(1 - residual(ours) / residual(theirs), abs=0.01)


def test_weights_that_are_worse_than_random_ones_are_not_similar():
    assert Comparison(10, -0.5, (-0.3, -0.3)).similarity == 0


def test_the_encoder_is_compared_with_eight_random_networks_on_the_same_images(source, monkeypatch):
    monkeypatch.setattr(measurement, "MOST_COMPARED", 25)
    data = target(20)
    found = measure("mine", source.encoder, data).compared
    rows = measurement.evenly(data.splits.train.label, 25)
    label = data.splits.train.label[rows]
    expected = []
    for seed in range(8):
        torch.manual_seed(seed)
        random = ConvNet((8, 16, 32)).eval()
        expected.append(log_me(features(random, data.splits.train, data.mean, data.std)[-1][rows], label, 5))
    assert found.random == pytest.approx(expected, abs=1e-4)
    ours = features(source.encoder, data.splits.train, *source.encoder.normalization)[-1][rows]
    assert found.encoder == pytest.approx(log_me(ours, label, 5), abs=1e-4)
    assert found.images == 25


def test_networks_read_few_images_beside_those_of_the_encoder_and_one_random_network(source, monkeypatch):
    passed = []
    forward = ConvNet.forward
    monkeypatch.setattr(ConvNet, "forward", lambda self, x: passed.append(len(x)) or forward(self, x))
    monkeypatch.setattr(measurement, "MOST_COMPARED", 25)
    measure("mine", source.encoder, target(20))
    assert sum(passed) == 2 * 100 + 8 * 25 + 10  # and one each to see whether it fits


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_another_random_network_is_not_similar_to_the_digits(seed):
    torch.manual_seed(seed)
    encoder = ConvNet(in_channels=1)
    encoder.pretrained = True
    found = measure("random", encoder, Subset(Digits(16), per_class=30))
    assert measurement.explained(found.scores.log_me - found.random.log_me) > 0.03  # against one random network
    assert choose(found).kinship == "different"


def test_an_encoder_that_was_trained_on_the_images_is_similar(source):
    assert choose(measure("mine", source.encoder, target(30, KNOWN))).kinship == "similar"


# What is chosen


@pytest.mark.parametrize(
    ("images", "similarity", "quadrant"),
    [
        (49, 0.51, ("small", "similar")),
        (49, 0.49, ("small", "different")),
        (50, 0.51, ("large", "similar")),
        (50, 0.49, ("large", "different")),
    ],
)
def test_the_four_quadrants_are_those_of_the_rule(monkeypatch, images, similarity, quadrant):
    monkeypatch.setattr(rule, "THRESHOLDS", rule.THRESHOLDS._replace(large=50, similar=0.5))
    advice = choose(made((images,) * 3, similarity))
    assert (advice.size, advice.kinship) == quadrant
    assert advice.strategy == rule.RULE[quadrant][0]
    text = " ".join(advice.reasons)
    assert ("a first guess: --verify true" in text) == (advice.size == "small")
    for said in (
        f"{images} images",
        f"{100 * similarity:.0f}%",
        "70.0%",
        "a random encoder's for 50.0%",
        STRATEGIES[advice.strategy].words,
    ):
        assert said in text


@pytest.mark.parametrize(("noise", "kinship"), [(0.0, "similar"), (0.07, "similar"), (0.08, "different")])
def test_images_are_similar_above_three_standard_deviations_of_random_encoders(noise, kinship):
    # three standard deviations: similarities of 1 - exp(-2 * 3 * 0.07) = 34 % and 38 %
    found = made((10, 10), 0.36, noise=noise)
    advice = choose(found)
    assert advice.kinship == kinship
    assert similar_from(found) == pytest.approx(max(0.03, 1 - math.exp(-6 * noise)))
    text = " ".join(advice.reasons)
    assert f"similar from {similar_from(found):.0%} on" in text
    assert f"{1 - math.exp(-6 * noise):.0%}: 3 standard deviations of 2 random encoders on 90 images" in text


def test_without_random_encoders_the_report_says_that_the_similarity_is_weak():
    advice = choose(made((10, 10), random=None, compared=None, prior=-0.3))
    assert "No random encoder of this kind can be created" in " ".join(advice.reasons)


def test_a_few_large_classes_do_not_make_the_data_large():
    assert choose(made((10, 10, 100_000))).size == "small"


def test_without_weights_there_is_nothing_to_transfer():
    advice = choose(made(similarity=0.9, pretrained=False))
    assert advice.strategy == "from-scratch"
    assert "random weights" in advice.reasons[-1]


def test_the_best_stage_has_the_most_right_neighbours_and_of_equals_is_the_last():
    assert [made(stage_knn=knn).best_stage for knn in ((0.8, 0.6), (0.6, 0.8), (0.6, 0.6))] == [0, 1, 1]


def lines_run(functions, call):
    """The lines of functions that a call has run, and those that they have."""
    codes, ran = {function.__code__ for function in functions}, set()

    def trace(frame, event, argument):
        if event == "line" and frame.f_code in codes:
            ran.add((frame.f_code.co_name, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    lines = {(code.co_name, line) for code in codes for _, _, line in code.co_lines() if line != code.co_firstlineno}
    return ran, {(name, line) for name, line in lines if line is not None}


def test_every_line_and_strategy_of_the_rule_is_reached_by_some_measurement():
    advised = set()

    def choose_and_plan_everything():
        for images, similarity, pretrained, random in itertools.product((10, 1000), (0, 0.9), (True, False), (0, 1)):
            found = made((images,) * 3, similarity, pretrained=pretrained)
            found = found if random else dataclasses.replace(found, random=None, compared=None, prior=-0.3)
            advice = choose(found)
            advised.add((advice.size, advice.kinship, advice.strategy))
            plan(advice, {}, {}, found.images)
        choose(worse_than_random())

    ran, lines = lines_run((choose, plan), choose_and_plan_everything)
    assert ran == lines
    assert advised == {
        *((*quadrant, strategy) for quadrant, (strategy, _) in rule.RULE.items()),
        ("small", "different", "from-scratch"),
        ("large", "different", "from-scratch"),
    }
    assert {strategy for *_, strategy in advised} == set(get_args(rule.Advised))


def worse_than_random():
    found = made((10,) * 3, 0.9, pretrained=True)
    return dataclasses.replace(found, random=dataclasses.replace(found.random, knn=1.0))


def test_weights_that_are_worse_than_random_ones_are_told():
    words = "Random weights of the same network do better here"
    assert words in " ".join(choose(worse_than_random()).reasons)
    assert words not in " ".join(choose(made((10,) * 3, 0.9, pretrained=True)).reasons)


# What is planned


@pytest.mark.parametrize(
    ("images", "batch_size", "steps"),
    [
        (1, 1, 500),
        (50, 32, 500),
        (63, 32, 500),
        (64, 64, 500),
        (1257, 64, 494),  # 26 epochs of 19 steps
        (6400, 64, 2000),  # 20 epochs
        (50_000, 64, 10_153),  # 13 epochs of 781 steps
        (1_280_000, 64, 100_000),  # five epochs are the fewest
    ],
)
def test_batches_and_steps_fit_the_number_of_images(images, batch_size, steps):
    assert advisor.fitting_batch_size(images) == batch_size
    assert advisor.fitting_steps(images) == steps


@pytest.mark.parametrize("strategy", get_args(rule.Advised))
def test_a_plan_names_strategy_encoder_data_and_a_length_of_whole_epochs(strategy):
    encoder = {"class_path": "recipes.nn.ConvNet", "init_args": {"weights": "a.pt"}}
    given = {"class_path": "datamodules.Digits", "init_args": {"size": 8, "batch_size": 256}}
    found = plan(Advice("small", "similar", strategy, ()), encoder, given, 1257, seed=3)
    settings = {"encoder": encoder, "stages": strategy, "lr_batch_size": None}
    assert found["model"] == {"class_path": "recipes.FineTune", "init_args": settings}
    assert found["data"] == {"class_path": "datamodules.Digits", "init_args": {"size": 8, "batch_size": 64}}
    assert given["init_args"]["batch_size"] == 256
    assert found["seed_everything"] == 3
    assert found["trainer"]["max_epochs"] == 26
    assert 26 % found["trainer"]["check_val_every_n_epoch"] == 0  # the last epoch is validated


# What is verified


@pytest.fixture(scope="module")
def verified(source):
    seeds = os.environ.get("PL_GLOBAL_SEED")
    data = target(20)
    before = copy.deepcopy(source.encoder.state_dict())
    results = verify(source.encoder, data, steps=60, views=HandwritingViews(), options=CPU)
    assert os.environ.get("PL_GLOBAL_SEED") == seeds
    assert data.batch_size == 50
    assert all(torch.equal(value, source.encoder.state_dict()[name]) for name, value in before.items())
    return results


def test_all_strategies_are_carried_out_and_learn_something(verified):
    assert list(verified) == list(STRATEGIES)
    for name, result in verified.items():
        assert result["steps"] == (60 if name.startswith(("fine", "from")) else 0)
        assert 0.4 < result["val"] <= 1  # five classes
        assert 0.4 < result["test"] <= 1
        assert 0 < result["minutes"] < 1


def test_a_linear_layer_on_frozen_features_is_logistic_regression(source, verified):
    data = target(20)
    data.setup()
    splits = data.splits
    train, *others = (
        features(source.encoder, part, *source.encoder.normalization)[-1]
        for part in (splits.train, splits.val, splits.test)
    )
    mean, std = train.mean(0), train.std(0, correction=0)
    model = LogisticRegression(C=1, tol=1e-8, max_iter=1000).fit((train - mean) / std, splits.train.label)
    accuracies = [
        model.score((x - mean) / std, part.label) for x, part in zip(others, (splits.val, splits.test), strict=True)
    ]
    found = verified["feature-extraction"]
    assert (found["val"], found["test"]) == pytest.approx(accuracies, abs=1e-6)


def test_an_svm_is_fitted_on_the_features_of_the_stage_that_is_asked_for(source):
    from recipes.evaluation import fit_svm

    data = target(20)
    data.setup()
    train, val = data.splits.train, data.splits.val
    x, y = (features(source.encoder, part, *source.encoder.normalization) for part in (train, val))
    found = {}
    for stage in (0, 2):
        fit = fit_svm(x[stage], train.label, y[stage], val.label, 5)
        prediction = (y[stage].double() @ fit.weight.T + fit.bias).argmax(1)
        found[stage] = verify(source.encoder, target(20), ["svm"], stage=stage, options=CPU)["svm"]["val"]
        assert found[stage] == pytest.approx((prediction == val.label).double().mean().item(), abs=1e-6)
    assert found[0] != found[2]
    assert verify(source.encoder, target(20), ["svm"], options=CPU)["svm"]["val"] == found[2]


def test_what_comes_out_depends_on_the_seed_alone(source, monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    first, again, other = (
        verify(source.encoder, target(10), ["from-scratch"], steps=40, seed=seed, options=CPU)["from-scratch"]
        for seed in (1, 1, 2)
    )
    assert "PL_GLOBAL_SEED" not in os.environ
    assert (first["val"], first["test"]) == (again["val"], again["test"])
    assert (first["val"], first["test"]) != (other["val"], other["test"])


def test_features_are_computed_once_for_all_heads(source, monkeypatch):
    passed = []
    forward = ConvNet.forward
    monkeypatch.setattr(ConvNet, "forward", lambda self, x: passed.append(len(x)) or forward(self, x))
    data = target(10)
    verify(source.encoder, data, ["feature-extraction", "svm"], options=CPU)
    splits = data.splits
    assert sum(passed) == len(splits.train) + len(splits.val) + len(splits.test) + 1  # and one to see whether it fits


@pytest.mark.parametrize(("best", "expected"), [(0.9, True), (0.91, True), (0.915, False)])
def test_advice_holds_if_nothing_is_better_by_more_than_a_point(best, expected):
    assert held({"svm": {"val": 0.9}, "fine-tune-all": {"val": best}, "linear": {"val": 0.1}}, "svm") is expected


# What cannot be measured


class Given(Digits):
    """With labels of one's choice in the place of the digits'."""

    def __init__(self, label, names, val=True):
        super().__init__(8)
        self.given, self.names, self.val = label, names, val

    @property
    def num_classes(self):
        return len(self.names)

    def load(self):
        splits = super().load()
        rows = torch.arange(len(self.given))
        train = ImagesInMemory(splits.train.images(rows), torch.tensor(self.given))
        return Splits(self.names, train, splits.val if self.val else None, splits.test)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Given([-1, -1], ("a", "b")), "no labels"),
        (Given([-1, -1], ()), "no labels"),
        (Given([0, 0], ("a",)), "one class \\(a\\)"),
        (Given([0, 1, -1], ("a", "b", "c")), "2 labelled training images for 3 classes"),
    ],
)
def test_data_that_cannot_be_measured_are_refused_in_one_line(source, data, words):
    for function in (lambda: measure("mine", source.encoder, data), lambda: verify(source.encoder, data)):
        with pytest.raises(ValueError, match=words) as error:
            function()
        assert "\n" not in str(error.value)


def test_an_encoder_for_other_images_is_refused(source):
    with pytest.raises(ValueError, match="1 channels, ConvNet takes 3"):
        measure("mine", ConvNet((4,), in_channels=3), target(3))


def test_strategies_cannot_be_compared_without_validation_images(source):
    with pytest.raises(ValueError, match="val_fraction"):
        verify(source.encoder, Given(list(range(10)), tuple("0123456789"), val=False))


def test_an_unknown_strategy_is_refused(source):
    with pytest.raises(ValueError, match="'svn': there are feature-extraction, svm"):
        verify(source.encoder, target(3), ["svn"])


def test_a_measurement_can_be_written_as_json():
    import json

    assert json.loads(json.dumps(dataclasses.asdict(made())))["scores"]["knn"] == 0.7
