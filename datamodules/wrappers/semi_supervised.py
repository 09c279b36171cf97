"""Few labels: hides most labels of any DataModule."""

import copy

import torch

from datamodules.base import ImageDataModule, Splits
from datamodules.loading.sampler import GlobalBatchSampler, SemiSupervisedSampler
from datamodules.loading.split import per_class


class SemiSupervised(ImageDataModule):
    """Hides the labels (-1) of most training images of another DataModule, for semi-supervised learning.

    Which images keep their labels is always the same, whatever the seed of the run; those of a smaller
    ``labels_per_class`` are among those of a larger one. Validation and test images keep theirs. Every global batch
    holds ``labelled_per_batch`` labelled images. An epoch is one pass over the unlabelled images, during which the
    labelled come as often as needed; where ``labelled_per_batch`` equals ``batch_size``, it is one pass over the
    labelled ones and no other is used.

    Args:
        base: source of the images. Its own batch_size and num_workers are not used.
        labelled_per_batch: number of labelled images in each global batch, from 1 to ``batch_size``.
        labels_per_class: number of images of each class that keep their label, >= 1. Give this or ``fraction``.
        fraction: share of the labelled images of each class that keep their label, in (0, 1]; at least one image does.
            Give this or ``labels_per_class``.
        Other arguments: see ``ImageDataModule``.

    Raises:
        ValueError: if an argument is out of its range, if not exactly one of ``labels_per_class`` and ``fraction`` is
            given, if a class has fewer labelled images than asked for, or if there are fewer images of a kind than
            a batch takes.
    """

    def __init__(
        self,
        base: ImageDataModule,
        labelled_per_batch: int,
        labels_per_class: int | None = None,
        fraction: float | None = None,
        batch_size: int = 256,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if (labels_per_class is None) == (fraction is None):
            given = "neither is" if fraction is None else "both are"
            raise ValueError(
                f"of labels_per_class and fraction, {given} given: give one of them, to say how many labels to keep"
            )
        if labels_per_class is not None and labels_per_class < 1:
            raise ValueError(f"labels_per_class is {labels_per_class}: it must be at least 1")
        if fraction is not None and not 0 < fraction <= 1:
            raise ValueError(f"fraction is {fraction}: it must be above 0 and at most 1")
        if not 1 <= labelled_per_batch <= batch_size:
            raise ValueError(
                f"labelled_per_batch is {labelled_per_batch}: it must be between 1 and the batch_size, {batch_size}"
            )
        self.base = base
        self.sources = (base,)
        self.labelled_per_batch = labelled_per_batch
        self.labels_per_class = labels_per_class
        self.fraction = fraction

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return self.base.num_classes

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel, in [0, 1]: that of ``base``, over all training images."""
        return self.base.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel, as that of ``base``."""
        return self.base.std

    def prepare_data(self) -> None:
        """Downloads or prepares what ``base`` needs."""
        self._ask_network()
        with self._reading_sources():
            self.base.prepare_data()

    def load(self) -> Splits:
        """Reads the images of ``base``, and hides labels."""
        self.base.setup()
        splits = self.base.splits
        label = splits.train.label
        known = (label >= 0).nonzero().flatten()
        if not len(known):
            raise ValueError(
                f"{type(self.base).__name__} has no labelled training images: SemiSupervised needs labelled data"
            )
        sizes = torch.bincount(label[known], minlength=len(splits.class_names))
        kept = torch.full_like(sizes, self.labels_per_class or 0)
        if self.fraction is not None:
            kept = (sizes.double() * self.fraction).round().long().clamp(min=1)
        for name, size, number in zip(splits.class_names, sizes.tolist(), kept.tolist(), strict=True):
            if number > size:
                raise ValueError(
                    f"the class {name} has {size} labelled images, but {number} must keep their label: lower "
                    "labels_per_class or label more images"
                )
        chosen = known[per_class(label[known], kept)]
        train = copy.copy(splits.train)
        train.label = torch.full_like(label, -1).index_copy_(0, chosen, label[chosen])
        return Splits(splits.class_names, train, splits.val, splits.test)

    def _train_sampler(self, devices: int, rank: int) -> GlobalBatchSampler:
        is_labelled = self.splits.train.label >= 0
        labelled, unlabelled = (which.nonzero().flatten() for which in (is_labelled, ~is_labelled))
        return SemiSupervisedSampler(labelled, unlabelled, self.labelled_per_batch, self.batch_size, devices, rank)
