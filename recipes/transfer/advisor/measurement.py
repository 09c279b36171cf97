"""What is measured of an encoder and a set of images, without training."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean, median, stdev

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

MOST_IMAGES = (
    5000  # that are measured: kNN's time grows with the square, and its accuracy is then known to about 1 point
)
RANDOM_ENCODERS = 8  # that the encoder is compared with
MOST_COMPARED = 1000  # images of this comparison, or 5 for each class: each is read by every random encoder
MOST_NEIGHBOURS = 5  # few, so that a class of a handful of images can win the vote among its own


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
class Comparison:
    """LogME of an encoder and of the same network with random weights, on the same images.

    Attributes:
        images: number of images.
        encoder: LogME of the encoder.
        random: LogME of each random encoder, at least two.
    """

    images: int
    encoder: float
    random: tuple[float, ...]

    @property
    def similarity(self) -> float:
        """Fraction of the label variance that the encoder explains and random encoders leave unexplained, in [0, 1]."""
        return explained(self.encoder - fmean(self.random))

    def noise(self, deviations: float) -> float:
        """Similarity of a random encoder that is this many standard deviations above the mean of the random ones."""
        return explained(deviations * stdev(self.random))


def explained(gain: float) -> float:
    """Fraction of the residual label variance, in [0, 1], that a gain in LogME explains; 0 if there is no gain.

    LogME is the mean logarithm of a normal density, to which a residual variance σ² contributes -log σ. A difference of
    d between two encoders stands for σ² that differ by the factor exp(-2 d).
    """
    return 1 - math.exp(-2 * max(0.0, gain))


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
        compared: the encoder beside several random encoders; None where they cannot be made.
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
    compared: Comparison | None
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
        """Fraction of the label variance, in [0, 1], that the encoder explains and random encoders leave unexplained.

        Without random encoders, the shares of the classes are the reference.
        """
        return self.compared.similarity if self.compared else explained(self.scores.log_me - self.prior)


def measure(
    name: str,
    encoder: Encoder,
    data: ImageDataModule,
    trainer: Trainer | None = None,
    source_head: Callable[[Tensor], Tensor] | None = None,
    most_images: int = MOST_IMAGES,
) -> Measurement:
    """Measures an encoder on the labelled training images of a DataModule. It trains nothing.

    The encoder and one random encoder read up to ``most_images`` images. Eight random encoders read up to 1,000 of
    these images, or 5 of each class. With up to 200 classes, all networks together read at most 18,000 images.

    Args:
        name: of the encoder, for the report.
        encoder: maps images to features.
        data: whose training images.
        trainer: whose device and precision are used. None makes one.
        source_head: maps features [N, F] of the encoder to the logits [N, S] of the classes that it was trained on, on
            the CPU.
        most_images: largest number of images that are used. If there are more, uses the same number of each class,
            and the same images every time.

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
    reference = next((StageReader(random, data, trainer) for random in _random_encoders(encoder)), None)
    readers = {"encoder": reader} | ({"random": reference} if reference else {})
    loader = data.in_order(data.splits.train, evenly(label, most_images))
    few = evenly(label, min(most_images, max(MOST_COMPARED, MOST_NEIGHBOURS * data.num_classes)))
    found = {key: features.to("cpu") for key, features in extract(readers, loader, trainer).items()}
    encoder.to(device)
    label = found["encoder"].label
    feature = reader.split(found["encoder"].feature)
    stage_knn = tuple(leave_one_out(each, label, data.num_classes, k) for each in feature)
    leep_score = None
    if source_head is not None:
        with torch.no_grad():
            leep_score = leep(source_head(feature[-1]).double().softmax(1), label, data.num_classes)
    of_random, compared = None, None
    if reference is not None:
        of_random = _scores(reference.split(found["random"].feature)[-1], label, data.num_classes, k)
        among = torch.isin(found["encoder"].index, few)
        ours = log_me(feature[-1][among], label[among], data.num_classes)
        compared = Comparison(len(few), ours, random_log_me(encoder, data, few, trainer))
    return Measurement(
        encoder=name,
        pretrained=encoder.pretrained,
        class_names=tuple(data.class_names),
        images_per_class=tuple(count.tolist()),
        images_used=len(label),
        k=k,
        scores=_scores(feature[-1], label, data.num_classes, k),
        random=of_random,
        compared=compared,
        prior=log_me(torch.ones(len(label), 1), label, data.num_classes),
        leep=leep_score,
        stages=tuple(stage.name for stage in stages(encoder)),
        stage_knn=stage_knn,
    )


def training_labels(data: ImageDataModule) -> Tensor:
    """The labels of the training images, which are read first if they are not there yet."""
    data.prepare_data()
    data.setup()
    label = data.splits.train.label
    images, classes = int((label >= 0).sum()), data.num_classes
    if not images or not classes:
        raise ValueError("the training images have no labels: put the images of each class into a folder of its own")
    if classes == 1:
        raise ValueError(f"all training images are of one class ({data.class_names[0]}): there must be at least two")
    if images < classes:
        raise ValueError(
            f"there are {images} labelled training images for {classes} classes: give at least one for each"
        )
    return label


def evenly(label: Tensor, most: int) -> Tensor:
    """Returns positions of at most ``most`` labelled images, the same number of each class that has enough images."""
    labelled = (label >= 0).nonzero().flatten()
    if len(labelled) <= most:
        return labelled
    count = torch.bincount(label[labelled])
    share = max(n for n in range(1, int(count.max()) + 1) if n == 1 or int(count.clamp(max=n).sum()) <= most)
    return labelled[per_class(label[labelled], count.clamp(max=share))]


def random_log_me(encoder: Encoder, data: ImageDataModule, rows: Tensor, trainer: Trainer) -> tuple[float, ...]:
    """Measures random encoders, one at a time.

    Args:
        encoder: whose network they have.
        data: read before.
        rows: positions of the training images.
        trainer: whose device and precision are used.

    Returns:
        LogME of each; none if they cannot be made.
    """
    scores = []
    for random in _random_encoders(encoder):
        reader = StageReader(random, data, trainer)
        found = extract({"": reader}, data.in_order(data.splits.train, rows), trainer)[""].to("cpu")
        scores.append(log_me(reader.split(found.feature)[-1], found.label, data.num_classes))
    return tuple(scores)


def _scores(feature: Tensor, label: Tensor, classes: int, k: int) -> Scores:
    return Scores(leave_one_out(feature, label, classes, k), h_score(feature, label), log_me(feature, label, classes))


def _random_encoders(encoder: Encoder) -> Iterator[Encoder]:
    """Makes the encoder with random weights, the same ones every time; none where it cannot be made."""
    for seed in range(RANDOM_ENCODERS):
        with isolate_rng():
            torch.manual_seed(seed)
            try:
                random = encoder.fresh()
            except ValueError:
                return
        yield random
