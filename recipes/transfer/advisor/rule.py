"""Which strategy of transfer learning fits an encoder and a set of images.

The rule looks, as that of Stanford's course CS231n (notes "Transfer Learning"), at how many images there are, and at
how similar they are to those that the encoder was trained on. The notes give no numbers; ours are in ``THRESHOLDS``.
For few images the notes advise a linear classifier, on the last features or, if the images are different, on those of
an earlier stage; we measured that fine-tuning is better.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from recipes.transfer.advisor.measurement import Measurement


class _Thresholds(NamedTuple):
    large: int  # images of the median class
    similar: float  # similarity, at least
    deviations: float  # standard deviations of random encoders, at least


# Set on the first seven pairs of results/quadrants.json (docs/results.md, "The four quadrants").
THRESHOLDS = _Thresholds(large=50, similar=0.03, deviations=3)


@dataclass(frozen=True)
class Strategy:
    """One way to make a classifier from an encoder.

    Attributes:
        words: description of the strategy.
        settings: arguments of ``FineTune``; empty for the SVM, which is a recipe.
    """

    words: str
    settings: dict[str, Any] = field(default_factory=dict)


# All that ``verify`` compares; the rule chooses among the last three.
STRATEGIES = {
    "feature-extraction": Strategy(
        "freeze all layers and train a linear layer on their features", {"stages": "feature-extraction"}
    ),
    "svm": Strategy("freeze all layers and fit a linear SVM on the features of one stage"),
    "fine-tune-last": Strategy(
        "freeze all stages except the last, and train the last stage with a new head", {"stages": "fine-tune-last"}
    ),
    "fine-tune-all": Strategy(
        "train all layers with a small learning rate, and a new head", {"stages": "fine-tune-all"}
    ),
    "from-scratch": Strategy("train the network from random weights", {"stages": "from-scratch"}),
}

Advised = Literal["fine-tune-last", "fine-tune-all", "from-scratch"]
Size = Literal["small", "large"]
Kinship = Literal["similar", "different"]

RULE: dict[tuple[Size, Kinship], tuple[Advised, str]] = {
    ("small", "similar"): (
        "fine-tune-last",
        "few images are not enough to train a whole network, and its first layers already suit similar images",
    ),
    ("small", "different"): (
        "fine-tune-all",
        "there are few images, but the features were learned from different images and have to change",
    ),
    ("large", "similar"): (
        "fine-tune-all",
        "there are enough images to train all layers, and the weights are a good start",
    ),
    ("large", "different"): (
        "fine-tune-all",
        "there are enough images to train all layers; even weights learned from different images are mostly a better "
        "or equal start than random weights",
    ),
}


@dataclass(frozen=True)
class Advice:
    """The recommended strategy, with its reasons.

    Attributes:
        size: size of the data.
        kinship: similarity of the images to those that the encoder was trained on.
        strategy: name of a strategy in ``STRATEGIES`` that ``FineTune`` trains.
        reasons: sentences with the measured numbers.
    """

    size: Size
    kinship: Kinship
    strategy: Advised
    reasons: tuple[str, ...]


def similar_from(measurement: Measurement) -> float:
    """Returns the similarity from which images count as similar: above what random encoders reach by chance."""
    compared = measurement.compared
    return max(THRESHOLDS.similar, compared.noise(THRESHOLDS.deviations) if compared else 0.0)


def choose(measurement: Measurement) -> Advice:
    """Chooses a strategy: places a measurement in one of the four quadrants of the rule."""
    m = measurement
    size: Size = "large" if m.median >= THRESHOLDS.large else "small"
    limit = similar_from(m)
    kinship: Kinship = "similar" if m.similarity >= limit else "different"
    reasons = [f"The data are {size}: the median class has {m.median:g} images (large from {THRESHOLDS.large} on)."]
    if not m.pretrained:
        reasons.append("The encoder has random weights: there is nothing to transfer.")
        return Advice(size, "different", "from-scratch", tuple(reasons))
    against = f", of a random encoder's for {m.random.knn:.1%}" if m.random else ""
    suits = "suit" if kinship == "similar" else "do not suit"
    reference = "random encoders leave" if m.compared else "the shares of the classes leave"
    reasons.append(
        f"The features of the encoder {suits} these images: they explain {m.similarity:.0%} of the label variance that "
        f"{reference} unexplained (LogME; similar from {limit:.0%} on). "
        f"Nearest neighbours of its features are right for {m.scores.knn:.1%} of the images{against}."
    )
    if m.random and m.random.knn > m.scores.knn:
        reasons.append("Random weights of the same network do better here: try other weights, or train from scratch.")
    if m.compared:
        reasons.append(
            f"By chance, a random encoder reaches up to {m.compared.noise(THRESHOLDS.deviations):.0%}: "
            f"{THRESHOLDS.deviations:g} standard deviations of {len(m.compared.random)} random encoders on "
            f"{m.compared.images:,} images."
        )
    else:
        reasons.append("No random encoder of this kind can be created, and most networks explain more than the shares.")
    strategy, why = RULE[size, kinship]
    reasons.append(f"So {STRATEGIES[strategy].words}: {why}.")
    if size == "small":
        reasons.append("With few images this advice is a first guess: --verify true measures every strategy.")
    return Advice(size, kinship, strategy, tuple(reasons))
