"""Assigns images to batches, on one device and on several."""

import math
import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, SequentialSampler

from datamodules.loading.split import representative


class GlobalBatchSampler(DistributedSampler[int], SequentialSampler):
    """Distributes global batches over the devices: the k-th batches of all ranks, in order, are the k-th global batch.

    A training epoch is a permutation that depends on the run's seed and the epoch alone, and drops the last,
    incomplete batch. An evaluation goes in order, once over each image: the last batch is dealt as evenly as it can be.
    A device without an image in an evaluation gets the position -1, because Lightning asks every device for a batch.
    Lightning leaves a ``DistributedSampler`` as it is, and tells it the epoch. Under ``overfit_batches`` it leaves only
    a ``SequentialSampler``, and otherwise deals the first images of the dataset; see ``repeat``. A subclass may write
    another ``order``, with a ``count`` that fits.

    Args:
        positions: int64 [N], the images in the dataset to sample from.
        batch_size: of the global batch.
        num_replicas: how many devices there are.
        rank: which of them this is.
        training: shuffles and drops, or neither.

    Attributes:
        skip: how many batches of an epoch to leave out at its beginning.

    Raises:
        ValueError: if the global batch does not divide over the devices.
    """

    def __init__(self, positions: Tensor, batch_size: int, num_replicas: int, rank: int, training: bool) -> None:
        if batch_size % num_replicas:
            below = batch_size // num_replicas * num_replicas
            near = " or ".join(str(size) for size in (below, below + num_replicas) if size)
            raise ValueError(
                f"batch_size is {batch_size} in all and does not divide over {num_replicas} devices: use {near}"
            )
        super().__init__(positions, num_replicas, rank, shuffle=training, drop_last=training)  # type: ignore[arg-type]
        self.positions = positions
        self.global_batch_size = batch_size
        self.batch_size = batch_size // num_replicas
        self.training = training
        self.skip = 0
        self._group: Tensor | None = None

    def repeat(self, group: Tensor) -> None:
        """Has all training epochs deal the images in the same order, the first of which stand for all.

        Args:
            group: int64, the group of each image of the dataset, such as its class.
        """
        self._group = group

    def __iter__(self) -> Iterator[int]:
        return iter(self._deal(self.order())[self.skip * self.batch_size :].tolist())

    def __len__(self) -> int:
        return len(self._deal(torch.empty(self.count, dtype=torch.int64)))

    @property
    def count(self) -> int:
        """How many images ``order`` gives."""
        return len(self.positions)

    def order(self) -> Tensor:
        """The images of this epoch, int64 [count]: one global batch after the other."""
        return self.shuffled(self.positions) if self.training else self.positions

    def shuffled(self, positions: Tensor, *stream: int) -> Tensor:
        """A permutation of positions [N] that the seed, the epoch and ``stream``, positive numbers, determine.

        After ``repeat``, it is the same for all of them.
        """
        if self._group is not None:
            return positions[representative(self._group[positions])]
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        permutation = np.random.default_rng((seed, self.epoch, *stream)).permutation(len(positions))
        return positions[torch.from_numpy(permutation)]

    def _deal(self, order: Tensor) -> Tensor:
        whole = len(order) // self.global_batch_size * self.global_batch_size
        mine = order[:whole].view(-1, self.num_replicas, self.batch_size)[:, self.rank].flatten()
        if self.training:
            return mine
        mine = torch.cat([mine, order[whole:].tensor_split(self.num_replicas)[self.rank]])
        return mine if len(mine) or not len(order) else torch.tensor([-1])


class SemiSupervisedSampler(GlobalBatchSampler):
    """Training batches with a fixed number of labelled images in each.

    An epoch is one pass over the unlabelled images, without the incomplete last batch; in the meantime the labelled
    come in pass after pass, of which each is a new permutation without its incomplete last batch, so that no batch
    holds an image twice. Where all images of a batch are labelled, an epoch is one pass over them. The labelled images
    are spread evenly over the global batch: if their number divides over the devices, each device gets as many.

    Args:
        labelled: int64 [N], the labelled images in the dataset.
        unlabelled: int64 [M], the others.
        labelled_per_batch: how many images of a global batch are labelled, from 1 to ``batch_size``.
        batch_size: of the global batch.
        num_replicas: how many devices there are.
        rank: which of them this is.

    Raises:
        ValueError: if there are fewer images of a kind than a batch takes, or if the global batch does not divide over
            the devices.
    """

    def __init__(
        self,
        labelled: Tensor,
        unlabelled: Tensor,
        labelled_per_batch: int,
        batch_size: int,
        num_replicas: int,
        rank: int,
    ) -> None:
        super().__init__(torch.cat([labelled, unlabelled]), batch_size, num_replicas, rank, training=True)
        if labelled_per_batch > len(labelled):
            raise ValueError(
                f"labelled_per_batch is {labelled_per_batch}, but only {len(labelled)} training images are labelled: "
                f"use at most {len(labelled)}, or label more"
            )
        if batch_size - labelled_per_batch > len(unlabelled):
            raise ValueError(
                f"batch_size is {batch_size} and labelled_per_batch {labelled_per_batch}, which takes "
                f"{batch_size - labelled_per_batch} unlabelled images, but there are only {len(unlabelled)}: use a "
                f"smaller batch_size, or batches of labelled images alone (labelled_per_batch = batch_size)"
            )
        slots = torch.arange(batch_size + 1) * labelled_per_batch // batch_size
        first = slots.diff() > 0  # [batch_size]: labelled_per_batch of them, at equal distances
        kinds = [(labelled, first), (unlabelled, ~first)]
        self._kinds = [(positions, places) for positions, places in kinds if places.any()]
        positions, places = self._kinds[-1]  # an epoch is one pass over these
        self._batches = len(positions) // int(places.sum())

    @property
    def count(self) -> int:
        """How many images ``order`` gives."""
        return self._batches * self.global_batch_size

    def order(self) -> Tensor:
        """The images of this epoch, int64 [count]: one global batch after the other."""
        batches = torch.empty(self._batches, self.global_batch_size, dtype=torch.int64)
        for kind, (positions, places) in enumerate(self._kinds, start=1):
            batches[:, places] = self._in_batches(positions, int(places.sum()), kind)
        return batches.flatten()

    def _in_batches(self, positions: Tensor, size: int, kind: int) -> Tensor:
        """As many passes over the images of a kind as this epoch needs, in whole batches: [batches, size]."""
        of_a_pass = len(positions) // size
        passes = range(1, math.ceil(self._batches / of_a_pass) + 1)  # from 1: NumPy's seeds leave out zeros at the end
        order = torch.cat([self.shuffled(positions, kind, number)[: of_a_pass * size] for number in passes])
        return order.view(-1, size)[: self._batches]
