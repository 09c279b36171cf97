"""The base class of all DataModules: the properties that recipes read, and the loaders."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, Literal, TypeGuard

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batch import Batch
from datamodules.loading.cpus import usable_cpus
from datamodules.loading.dataset import ImageDataset
from datamodules.loading.loader import ResumableLoader
from datamodules.loading.sampler import GlobalBatchSampler
from datamodules.loading.split import representative
from datamodules.loading.split_counts import counted
from datamodules.reading import Reading, ReadsLikeNetwork

_MOST_WORKERS = 256  # that a user may ask for: each is a process
_MAX_WORKERS = 16  # more rarely load faster, and each holds memory
_STATISTICS_FILES = 2048  # images that mean and std are taken from where each must be decoded
_STATISTICS_CHUNK = 16_000_000  # bytes of images


@dataclass(frozen=True)
class Splits:
    """The images of a DataModule.

    Attributes:
        class_names: of the labels 0, 1, ...; empty where nothing is labelled.
        train: to train on; label -1 where unlabelled.
        val: to validate on, if any.
        test: to test on, if any.
    """

    class_names: tuple[str, ...]
    train: ImageDataset
    val: ImageDataset | None = None
    test: ImageDataset | None = None


class ImageDataModule(ReadsLikeNetwork, LightningDataModule):
    """Images of one size for any recipe.

    Subclasses write ``load`` and, where there is something to download, ``prepare_data``.

    The properties are available after ``setup``, which a Trainer calls on the DataModule before it calls it on the
    recipe; ``num_classes`` is at once where a subclass knows it. Under a Trainer each loader hands out its device's
    share of the global batches. With the Trainer's ``overfit_batches``, every epoch trains on the same sample of all
    classes, and is validated on a sample of the validation images.

    Arguments of subclasses that say how images are read, and are null, are those of the Trainer's network if it was
    trained before (``ReadsLikeNetwork``).

    Args:
        batch_size: images per step over all devices together, >= 1; a multiple of the number of devices.
        num_workers: number of processes per device that load images, from 0 to 256. If null, uses 0 for images in
            memory; otherwise the usable CPUs divided by the devices of the machine, at most 16.

    Raises:
        ValueError: if ``batch_size`` is not positive or ``num_workers`` is out of its range.
    """

    def __init__(self, batch_size: int = 256, num_workers: int | None = None) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
        if num_workers is not None and not 0 <= num_workers <= _MOST_WORKERS:
            raise ValueError(
                f"num_workers is {num_workers}: it must be at least 0 and at most {_MOST_WORKERS}, or null to choose it"
            )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self._splits: Splits | None = None
        self._read_with: tuple[Any, ...] = ()  # how
        self._matched: Splits | None = None
        self._instead: Splits | None = None
        self._statistics_are_shared = False
        self._statistics_place: tuple[int, int, torch.device | None] = 1, 0, None  # number of devices, rank, device
        self._train_loader: ResumableLoader | None = None
        self._position: dict[str, Any] = {}

    def load(self) -> Splits:
        """Reads the images."""
        raise NotImplementedError(f"{type(self).__name__} must write load()")

    def setup(self, stage: str | None = None) -> None:
        """Reads the images, once, whatever the stage; again if the network was trained on images read otherwise.

        Whatever an earlier run has set is forgotten.
        """
        self._ask_network()
        self._give_back()
        self._position = {}
        if self._splits is None or self._read_with != self._all_chosen:
            for name in ("image_shape", "_statistics"):  # of images that were read otherwise
                vars(self).pop(name, None)
            with self._reading_sources():
                self._splits = self.load()
            self._read_with = self._all_chosen
            if not (self.sources and self._is_read_by_another):  # the outermost one tells
                self._tell()
            self._statistics_are_shared = False
        if self._place[0] > 1 and not self._statistics_are_shared:
            self._share_statistics()
        if stage == "fit" and self._overfits:
            rank_zero_info(
                f"overfit_batches is {self._overfits}: every epoch trains on the same images, a sample of each of its "
                "classes, and is validated on a sample of the validation images"
            )

    @rank_zero_only
    def _tell(self) -> None:
        """Prints what was found, unless it is what the one wrapped DataModule has printed."""
        found = counted(self.splits, [data.splits for data in self.sources])
        if [found] != [counted(data.splits) for data in self.sources]:
            rank_zero_info(f"{type(self).__name__}: {found}")

    def teardown(self, stage: str) -> None:
        """Gives the images, labels and classes back as they were before the run."""
        self._give_back()

    def on_exception(self, exception: BaseException) -> None:
        """Does the same after a run that failed."""
        self._give_back()

    def _give_back(self) -> None:
        self._instead = self._matched = None

    @property
    def splits(self) -> Splits:
        """The datasets behind the loaders."""
        if self._splits is None:
            raise RuntimeError(f"{type(self).__name__} has not read its images yet: call prepare_data() and setup()")
        return self._matched or self._splits

    @property
    def reading(self) -> Reading:
        """How the images are read; after ``setup``."""
        if self.sources:
            first, *others = (data.reading for data in self.sources)
            return reduce(Reading.keeping, others, first)
        channels, height, width = self.image_shape
        return Reading(height if height == width else None, channels)

    def match_classes(self, names: Sequence[str], strict: bool = True) -> None:
        """Numbers the labels as a trained classifier does, until the run ends: classes are matched by name.

        Args:
            names: names of the classifier's classes; the data may have fewer.
            strict: whether a class that the classifier was not trained on is an error. Otherwise, its images count as
                unlabelled.

        Raises:
            ValueError: if ``strict`` and the data has another class.
        """
        ours, theirs = self.class_names, tuple(names)
        unknown = [name for name in ours if name not in theirs]
        if unknown and strict:
            raise ValueError(
                f"the data has the class {unknown[0]!r}, but the checkpoint knows {listed_classes(theirs)} only: leave "
                f"out {', '.join(unknown)}, or give images without class folders"
            )
        if ours and ours != theirs:
            self.relabel(theirs, torch.tensor([theirs.index(name) if name in theirs else -1 for name in ours]))

    def relabel(self, names: Sequence[str], new: Tensor) -> None:
        """Gives the images other labels, until the run ends or the next ``setup``.

        Args:
            names: names of the new labels.
            new: int64 [labels], the new label for each old one, or for the images without label if there is none.
        """
        splits = self.splits
        if splits.class_names:
            new = torch.cat([new, torch.tensor([-1])])

        def relabelled(images: ImageDataset) -> ImageDataset:
            images = copy.copy(images)
            images.label = new[images.label]
            return images

        val, test = (None if part is None else relabelled(part) for part in (splits.val, splits.test))
        self._matched = Splits(tuple(names), relabelled(splits.train), val, test)

    def hand_out(self, train: ImageDataset, val: ImageDataset | None) -> None:
        """Replaces the images of the loaders for training and validation, until the run ends.

        Args:
            train: as many entries as there are training images, in their order: such as their features.
            val: the same for the validation images.
        """
        self._instead = Splits(self.class_names, train, val)

    @property
    def _given(self) -> Splits:
        return self._instead or self.splits

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels 0, 1, ...; empty where nothing is labelled."""
        return self.splits.class_names

    @property
    def num_classes(self) -> int:
        """How many classes there are; 0 where nothing is labelled. The datasets here know it before ``setup``."""
        return len(self.class_names)

    @property
    def classes_without_images(self) -> int:
        """How many classes have no images, because they were learned before."""
        return 0

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of every image."""
        _, channels, height, width = self.splits.train.images(torch.tensor([0])).shape
        return channels, height, width

    @property
    def mean(self) -> tuple[float, ...]:
        """Mean of each channel over the training images, in [0, 1].

        Of all of them where they are in memory, else of 2048 that stand evenly spaced in the dataset.
        """
        return self._statistics[0]

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of each channel over the pixels that ``mean`` is taken from; at least 1/255."""
        return self._statistics[1]

    @cached_property
    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        train = self.splits.train
        count = len(train) if train.in_memory else min(len(train), _STATISTICS_FILES)
        positions = torch.arange(count) * len(train) // count
        channels, height, width = self.image_shape
        devices, rank, device = self._statistics_place
        found = torch.zeros(channels, 256, dtype=torch.int64)  # pixels of each value: exact, whatever the order
        for chunk in positions[rank::devices].split(max(1, _STATISTICS_CHUNK // (channels * height * width))):
            for values, image in zip(found, train.images(chunk).unbind(1), strict=True):
                values += torch.bincount(image.flatten(), minlength=256)
        if devices > 1:
            found = found.to(device)
            torch.distributed.all_reduce(found)
        found, value = found.cpu(), torch.arange(256)
        first, second = ((found * power).sum(1).double() / (count * height * width) for power in (value, value**2))
        std = (second - first.square()).clamp(min=0).sqrt()
        return tuple((first / 255).tolist()), tuple((std / 255).clamp(min=1 / 255).tolist())

    def _share_statistics(self) -> None:
        """Computes mean and standard deviation on all devices of the run together, each from its share of the images.

        Only ``setup`` in a run may do so, because all devices have to do it.
        """
        self._compute_statistics_on(*self._place, self.trainer.strategy.root_device)
        _ = self.mean
        self._statistics_are_shared = True
        self._compute_statistics_on(1, 0, None)

    def _compute_statistics_on(self, devices: int, rank: int, device: torch.device | None) -> None:
        self._statistics_place = devices, rank, device
        if devices > 1:
            vars(self).pop("_statistics", None)  # devices that know them and others would wait for each other
        for data in self.sources:
            data._compute_statistics_on(devices, rank, device)

    def _all_have_read(self) -> None:
        """Is called when all processes of the run have read their images."""
        for data in self.sources:
            data._all_have_read()

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training images in batches, in a new order every epoch; an incomplete last batch is dropped.

        Raises:
            ValueError: if there are fewer training images than ``batch_size``, or if it does not divide over the
                devices.
        """
        sampler = self._train_sampler(*self._place)
        if self._overfits:
            sampler.repeat(self.splits.train.group)
        self._train_loader = ResumableLoader(**self._options(self._given.train, sampler))
        self._train_loader.trainer = self.trainer
        self._train_loader.load_state_dict(self._position)
        self._position = {}
        return self._train_loader

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the position in the epoch.

        Lightning keeps it with its loops too, but forgets to hand it back where a recipe asks for
        ``estimated_stepping_batches`` in ``configure_optimizers``, because the loaders are then made before.
        """
        return {} if self._train_loader is None else self._train_loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets the position at which the next training loader begins."""
        self._position = state_dict

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The validation images in order; no loader where there are none, and Lightning does not validate.

        If the Trainer limits the batches, the first ones stand for all images.
        """
        val = self._given.val
        return [] if val is None else self.in_order(val, self._measured("val"))

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test images in order. If the Trainer limits the batches, the first ones stand for all images.

        Raises:
            ValueError: if there are none.
        """
        if self.splits.test is None:
            raise ValueError(f"{type(self).__name__} has no test images here")
        return self.in_order(self.splits.test, self._measured("test"))

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test images in order, or the training images where there is no test split."""
        splits = self.splits
        if splits.test is not None:
            others = len(splits.train) + (0 if splits.val is None else len(splits.val))
            rank_zero_info(
                f"the {len(splits.test):,} test images are predicted, and not the {others:,} others{self._remedy()}"
            )
        return self.in_order(splits.test or splits.train)

    def _remedy(self) -> str:
        """What to do to predict all images, where there is an option for it."""
        return ""

    def bank_dataloader(self, every: int = 1) -> DataLoader[Batch]:
        """The labelled training images in order, none left out: for nearest neighbours and probes.

        Args:
            every: step between the labelled images that are used, > 0. With 1, uses all.

        Raises:
            ValueError: if none is labelled.
        """
        train = self.splits.train
        labelled = (train.label >= 0).nonzero().flatten()
        if not len(labelled):
            raise ValueError(f"{type(self).__name__} has no labelled training images")
        return self.in_order(train, labelled[::every])

    def in_order(
        self, dataset: ImageDataset, positions: Tensor | None = None, shared: bool = True
    ) -> DataLoader[Batch]:
        """The images of a dataset in order, or those at ``positions`` [N] alone; nothing is left out.

        Devices share them, unless ``shared`` is false: then this one gets all.
        """
        positions = torch.arange(len(dataset)) if positions is None else positions
        place = self._place if shared else (1, 0)
        sampler = GlobalBatchSampler(positions, self.batch_size, *place, training=False)
        return DataLoader(**self._options(dataset, sampler))

    @property
    def _overfits(self) -> float:
        """How many batches, or which share of them, the Trainer repeats in every epoch; 0 for ordinary training."""
        repeated: float = getattr(self.trainer, "overfit_batches", 0)
        return repeated

    def _measured(self, split: Literal["val", "test"]) -> Tensor | None:
        """The order of the images of a split, if the Trainer measures some of its batches only; None for all."""
        limit = getattr(self.trainer, f"limit_{split}_batches", 1.0)
        measures_all = isinstance(limit, float) and limit == 1  # the integer 1 is one batch
        return None if measures_all else representative(getattr(self.splits, split).group)

    def _train_sampler(self, devices: int, rank: int) -> GlobalBatchSampler:
        train = self.splits.train
        if len(train) < self.batch_size:
            raise ValueError(
                f"batch_size is {self.batch_size}, but there are only {len(train)} training images: "
                f"use a batch_size of at most {len(train)}"
            )
        return GlobalBatchSampler(torch.arange(len(train)), self.batch_size, devices, rank, training=True)

    @property
    def _place(self) -> tuple[int, int]:
        """How many devices there are, and which of them this is."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _options(self, dataset: ImageDataset, sampler: GlobalBatchSampler) -> dict[str, Any]:
        workers = self._workers(dataset)
        self._all_have_read()  # a Trainer asks for loaders after the set-up of all devices
        return {
            "dataset": dataset,
            "batch_size": sampler.batch_size,
            "sampler": sampler,
            "num_workers": workers,
            "collate_fn": _as_it_is,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": workers > 0,
        }

    def _workers(self, dataset: ImageDataset) -> int:
        if self.num_workers is not None:
            return self.num_workers
        if dataset.in_memory:
            return 0
        devices = 1 if self.trainer is None else self.trainer.num_devices
        return min(max(usable_cpus() // devices, 1), _MAX_WORKERS)


def is_labelled(images: ImageDataset | None) -> TypeGuard[ImageDataset]:
    """Whether there are images, and at least one has a label."""
    return images is not None and bool((images.label >= 0).any())


def listed_classes(names: Sequence[str]) -> str:
    """The number of classes and the first names, for messages."""
    return f"{len(names)} class{'es' * (len(names) != 1)} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


def _as_it_is(batch: Batch) -> Batch:
    """The collate function: datasets hand out whole batches."""
    return batch
