"""Which strategy of transfer learning fits an encoder and a set of images: measure, choose, and plan.

The rule looks, as that of Stanford's course CS231n (notes "Transfer Learning"), at how many images there are, and at
how similar they are to those that the encoder was trained on. The notes give no numbers; ours are in ``THRESHOLDS``.
For few images the notes advise a linear classifier, on the last features or, if the images are different, on those of
an earlier stage; we measured that fine-tuning is better.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from datamodules import ImageDataModule
from datamodules.loading.split import per_class
from recipes.evaluation.features import extract
from recipes.evaluation.neighbours import leave_one_out
from recipes.evaluation.stage_reader import StageReader, quiet_trainer
from recipes.evaluation.transferability import h_score, leep, log_me
from recipes.nn import Encoder, stages

# The rule: two thresholds, what they choose, and what that means.


class _Thresholds(NamedTuple):
    large: int
    similar: float


# Set on results/quadrants.json (docs/results.md, "The four quadrants"): any number from 11 to 99 images would do there,
# and any similarity from 0.02 to 0.04.
THRESHOLDS = _Thresholds(large=50, similar=0.03)


@dataclass(frozen=True)
class Strategy:
    """One way to make a classifier from an encoder.

    Attributes:
        words: what is done.
        recipe: class path of the recipe that does it.
        settings: arguments of the recipe.
    """

    words: str
    recipe: str = "recipes.FineTune"
    settings: dict[str, Any] = field(default_factory=dict)


STRATEGIES = {
    "feature-extraction": Strategy(
        "keep all layers and train a linear layer on their features", settings={"stages": "feature-extraction"}
    ),
    "svm": Strategy("keep all layers and fit a linear SVM on the features of one stage", "recipes.SVM"),
    "fine-tune-last": Strategy(
        "keep all layers but the last stage, and train that with a new head", settings={"stages": "fine-tune-last"}
    ),
    "fine-tune-all": Strategy("train all layers gently, with a new head", settings={"stages": "fine-tune-all"}),
    "from-scratch": Strategy("train the network from random weights", settings={"stages": "from-scratch"}),
}

Size = Literal["small", "large"]
Kinship = Literal["similar", "different"]

RULE: dict[tuple[Size, Kinship], tuple[str, str]] = {
    ("small", "similar"): (
        "fine-tune-last",
        "few images teach a whole network little, and what its first layers know suits them already",
    ),
    ("small", "different"): (
        "fine-tune-all",
        "there are few images, but the features were made for others and have to change",
    ),
    ("large", "similar"): (
        "fine-tune-all",
        "there are enough images to train all layers, and the weights are a good start",
    ),
    ("large", "different"): (
        "fine-tune-all",
        "there are enough images to train all layers; from other images, the weights are still mostly no worse a start "
        "than random ones",
    ),
}

MOST_IMAGES = (
    5000  # that are measured: kNN's time grows with the square, and its accuracy is then known to about 1 point
)
MOST_NEIGHBOURS = 5  # few, so that a class of a handful of images can win the vote among its own
LARGEST_BATCH = 64
# The published code of Big Transfer (Kolesnikov et al., 2020, arXiv:1912.11370) takes 500 steps for fewer than 20,000
# images and 10,000 for more, with batches of 512. Ours are smaller, so that between the two we take 20 epochs; five are
# the fewest, as FineTune warms up for one.
FEWEST_STEPS, MOST_STEPS, EPOCHS, FEWEST_EPOCHS = 500, 10_000, 20, 5


@dataclass(frozen=True)
class Scores:
    """What the features of one encoder know about the classes.

    Attributes:
        knn: leave-one-out accuracy of nearest neighbours, in [0, 1].
        h_score: regularised H-score, in [0, classes - 1].
        log_me: LogME.
    """

    knn: float
    h_score: float
    log_me: float


@dataclass(frozen=True)
class Measurement:
    """An encoder, measured on the labelled training images of a DataModule.

    Attributes:
        encoder: its name.
        pretrained: whether it has weights that were trained before.
        class_names: of the labels.
        images_per_class: labelled training images of each class.
        images_used: how many of them the scores were taken on.
        k: neighbours that vote in all kNN accuracies.
        scores: of the encoder.
        random: of the same network with random weights; None where it cannot be made.
        prior: LogME of nothing but the shares of the classes.
        leep: of the classifier that the encoder was trained with; None where there is none.
        stages: names of the encoder's stages, from the first to the last.
        stage_knn: leave-one-out accuracy of nearest neighbours on the features of each stage.
    """

    encoder: str
    pretrained: bool
    class_names: tuple[str, ...]
    images_per_class: tuple[int, ...]
    images_used: int
    k: int
    scores: Scores
    random: Scores | None
    prior: float
    leep: float | None
    stages: tuple[str, ...]
    stage_knn: tuple[float, ...]

    @property
    def images(self) -> int:
        """Labelled training images."""
        return sum(self.images_per_class)

    @property
    def median(self) -> float:
        """Images of the median class."""
        return median(self.images_per_class)

    @property
    def best_stage(self) -> int:
        """The stage whose neighbours are right most often, by number; of equals the last."""
        return max(range(len(self.stages)), key=lambda number: (self.stage_knn[number], number))

    @property
    def similarity(self) -> float:
        """How much the encoder knows of what tells these classes apart, in [0, 1].

        It is the share of what a random encoder's features leave unexplained of the labels that the encoder's features
        explain. LogME is the mean logarithm of a normal density, to which a residual variance σ² contributes -log σ;
        a difference of d between two encoders stands for σ² that differ by the factor exp(-2 d). Without a random
        encoder, what the shares of the classes leave unexplained counts.
        """
        gain = self.scores.log_me - (self.random.log_me if self.random else self.prior)
        return 1 - math.exp(-2 * max(0.0, gain))


@dataclass(frozen=True)
class Advice:
    """What to do.

    Attributes:
        size: of the data.
        kinship: of the images with those that the encoder was trained on.
        strategy: one of ``STRATEGIES``.
        stage: whose features the SVM takes, by number; None elsewhere.
        reasons: in plain words, with the numbers.
    """

    size: Size
    kinship: Kinship
    strategy: str
    stage: int | None
    reasons: tuple[str, ...]


def measure(
    name: str,
    encoder: Encoder,
    data: ImageDataModule,
    trainer: Trainer | None = None,
    source_head: Callable[[Tensor], Tensor] | None = None,
    most_images: int = MOST_IMAGES,
) -> Measurement:
    """Measures an encoder on the labelled training images of a DataModule. It trains nothing.

    Args:
        name: of the encoder, for the report.
        encoder: maps images to features.
        data: whose training images.
        trainer: whose device and precision are used. None makes one.
        source_head: maps features [N, F] of the encoder to the logits [N, S] of the classes that it was trained on, on
            the CPU.
        most_images: how many images are used at most; where there are more, so many of each class, the same ones
            every time.

    Returns:
        The measurement.

    Raises:
        ValueError: if the images have no labels or all the same, there are fewer of them than classes, or they do not
            suit the encoder.
    """
    label = training_labels(data)
    trainer = trainer or quiet_trainer()
    count = torch.bincount(label[label >= 0], minlength=data.num_classes)
    device = next(encoder.parameters()).device
    k = max(1, min(MOST_NEIGHBOURS, int(count[count > 0].min()) - 1))  # a class has one image fewer for its own
    reader = StageReader(encoder, data, trainer)
    random = _random(encoder)
    reference = None if random is None else StageReader(random, data, trainer)
    readers = {"encoder": reader} | ({"random": reference} if reference else {})
    loader = data.in_order(data.splits.train, _evenly(label, count, most_images))
    found = {key: features.to("cpu") for key, features in extract(readers, loader, trainer).items()}
    encoder.to(device)
    label = found["encoder"].label
    feature = reader.split(found["encoder"].feature)
    stage_knn = tuple(leave_one_out(each, label, data.num_classes, k) for each in feature)
    leep_score = None
    if source_head is not None:
        with torch.no_grad():
            leep_score = leep(source_head(feature[-1]).double().softmax(1), label, data.num_classes)
    of_random = None
    if reference is not None:
        of_random = _scores(reference.split(found["random"].feature)[-1], label, data.num_classes, k)
    return Measurement(
        encoder=name,
        pretrained=encoder.pretrained,
        class_names=tuple(data.class_names),
        images_per_class=tuple(count.tolist()),
        images_used=len(label),
        k=k,
        scores=_scores(feature[-1], label, data.num_classes, k),
        random=of_random,
        prior=log_me(torch.ones(len(label), 1), label, data.num_classes),
        leep=leep_score,
        stages=tuple(stage.name for stage in stages(encoder)),
        stage_knn=stage_knn,
    )


def choose(measurement: Measurement) -> Advice:
    """Places a measurement in one of the four quadrants of the rule, and says what to do."""
    m = measurement
    size: Size = "large" if m.median >= THRESHOLDS.large else "small"
    kinship: Kinship = "similar" if m.similarity >= THRESHOLDS.similar else "different"
    reasons = [f"The data are {size}: the median class has {m.median:g} images (large from {THRESHOLDS.large} on)."]
    if not m.pretrained:
        reasons.append("The encoder has random weights: there is nothing to transfer.")
        return Advice(size, "different", "from-scratch", None, tuple(reasons))
    reference = "a random encoder" if m.random else "the shares of the classes"
    against = f", of a random encoder's for {m.random.knn:.1%}" if m.random else ""
    preposition = "to" if kinship == "similar" else "from"
    reasons.append(
        f"The images are {kinship} {preposition} those that the encoder knows: its features explain "
        f"{m.similarity:.0%} of what {reference} leaves unexplained of the classes (LogME; similar from "
        f"{THRESHOLDS.similar:.0%} on). Nearest neighbours of its features are right for {m.scores.knn:.1%} of the "
        f"images{against}."
    )
    strategy, why = RULE[size, kinship]
    reasons.append(f"So {STRATEGIES[strategy].words}: {why}.")
    stage = None
    if strategy == "svm":
        stage = m.best_stage
        reasons.append(
            f"Of the encoder's stages 0 to {len(m.stages) - 1}, neighbours are right most often on number {stage} "
            f"({m.stages[stage]}): {m.stage_knn[stage]:.1%}; on the last {m.stage_knn[-1]:.1%}."
        )
    return Advice(size, kinship, strategy, stage, tuple(reasons))


def plan(advice: Advice, encoder: dict[str, Any], data: dict[str, Any], images: int, seed: int = 0) -> dict[str, Any]:
    """A configuration for ``recipes fit`` that does what was advised.

    Args:
        advice: what to do.
        encoder: ``class_path`` and ``init_args`` of the encoder, with its weights.
        data: the same of the DataModule.
        images: in its training set.
        seed: of the run.

    Returns:
        What the YAML file is to hold.
    """
    strategy = STRATEGIES[advice.strategy]
    batch_size = fitting_batch_size(images)
    settings = {"encoder": encoder, **strategy.settings}
    if advice.stage is not None:
        settings["stage"] = advice.stage
    if advice.strategy != "svm":
        settings["lr_batch_size"] = None  # small batches, and not much slower steps
    trainer: dict[str, Any] = {"max_epochs": 1, "limit_train_batches": 1}  # an SVM is fitted at once
    if advice.strategy != "svm":
        per_epoch = images // batch_size
        epochs = fitting_steps(images) // per_epoch
        trainer = {
            "max_epochs": epochs,
            # about five times, the last after the last epoch
            "check_val_every_n_epoch": max(n for n in range(1, epochs // 5 + 2) if epochs % n == 0),
            "log_every_n_steps": min(10, per_epoch),
        }
    return {
        "seed_everything": seed,
        "model": {"class_path": strategy.recipe, "init_args": settings},
        "data": {**data, "init_args": {**data.get("init_args", {}), "batch_size": batch_size}},
        "trainer": trainer,
    }


def fitting_batch_size(images: int) -> int:
    """The largest power of two that is at most 64 and at most the number of images, which is > 0."""
    return min(LARGEST_BATCH, 1 << (images.bit_length() - 1))


def fitting_steps(images: int) -> int:
    """How many steps of the optimiser suit so many images: whole epochs, from about 500 to about 10,000 steps."""
    per_epoch = images // fitting_batch_size(images)
    steps = min(max(EPOCHS * per_epoch, FEWEST_STEPS), MOST_STEPS)
    return max(FEWEST_EPOCHS, round(steps / per_epoch)) * per_epoch


def training_labels(data: ImageDataModule) -> Tensor:
    """The labels of the training images, which are read first if they are not there yet."""
    data.prepare_data()
    data.setup()
    label = data.splits.train.label
    images, classes = int((label >= 0).sum()), data.num_classes
    if not images or not classes:
        raise ValueError("the training images have no labels: put the pictures of each class into a folder of its own")
    if classes == 1:
        raise ValueError(f"all training images are of one class ({data.class_names[0]}): there must be two at least")
    if images < classes:
        raise ValueError(
            f"there are {images} labelled training images for {classes} classes: give at least one for each"
        )
    return label


def _evenly(label: Tensor, count: Tensor, most: int) -> Tensor:
    """The positions of the labelled images, or of at most so many: the same number of each class that has that many."""
    labelled = (label >= 0).nonzero().flatten()
    if len(labelled) <= most:
        return labelled
    share = max(n for n in range(1, int(count.max()) + 1) if n == 1 or int(count.clamp(max=n).sum()) <= most)
    return labelled[per_class(label[labelled], count.clamp(max=share))]


def _scores(feature: Tensor, label: Tensor, classes: int, k: int) -> Scores:
    return Scores(leave_one_out(feature, label, classes, k), h_score(feature, label), log_me(feature, label, classes))


def _random(encoder: Encoder) -> Encoder | None:
    """The encoder with random weights, the same ones every time; None where it cannot be made."""
    with isolate_rng():
        torch.manual_seed(0)
        try:
            return encoder.fresh()
        except ValueError:
            return None
