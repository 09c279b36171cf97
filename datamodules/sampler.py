"""Which images are in which batch, on one device and on many."""

import os
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DistributedSampler


class GlobalBatchSampler(DistributedSampler[int]):
    """Deals global batches over the devices: the ranks' k-th batches, one after the other, are the k-th global batch.

    A training epoch is a permutation that depends on the run's seed and the epoch alone, and drops the last,
    incomplete batch. An evaluation goes in order, once over each image: the last batch is dealt as evenly as it can be.
    Lightning leaves a ``DistributedSampler`` as it is, and tells it the epoch.

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

    def __iter__(self) -> Iterator[int]:
        return iter(self._deal(self._order())[self.skip * self.batch_size :].tolist())

    def __len__(self) -> int:
        return len(self._deal(self.positions))

    def _order(self) -> Tensor:
        if not self.training:
            return self.positions
        seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
        permutation = np.random.default_rng((seed, self.epoch)).permutation(len(self.positions))
        return self.positions[torch.from_numpy(permutation)]

    def _deal(self, order: Tensor) -> Tensor:
        whole = len(order) // self.global_batch_size * self.global_batch_size
        mine = order[:whole].view(-1, self.num_replicas, self.batch_size)[:, self.rank].flatten()
        return mine if self.training else torch.cat([mine, order[whole:].tensor_split(self.num_replicas)[self.rank]])
