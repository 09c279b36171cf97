"""A teacher's logits of all training images, computed once and kept in a file."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules import Batch, ImageDataModule
from recipes.base.together import Together
from recipes.evaluation.features import forward, join

_PROBES = 16  # images whose views and logits tell whether a file is the right one
_TOLERANCE = 0.05  # between logits of the same image in batches of other sizes, in bfloat16, relative to the largest

View = Callable[[Batch], Tensor]


class TaughtBatch(NamedTuple):
    """A batch with the teacher's logits.

    Attributes:
        image: as in ``Batch``.
        label: as in ``Batch``.
        index: as in ``Batch``.
        teacher_logits: float [B, classes].
    """

    image: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index
    teacher_logits: Tensor


class CachedLogits:
    """The logits [N, classes] of all training images, by the index of the image, in a file that is mapped to memory.

    The name of the file is a hash of the teacher's weights, the images, the views of the first images and the
    precision, so a wrong file is never read. If the file is missing, the devices share the images. The first process
    writes the logits of all devices, and renames the file to its name when it is complete. Opening the file recomputes
    the logits of the first images and compares them.

    Args:
        folder: folder of the file; processes on other machines must see it too.
        teacher: network that maps float images in [0, 1] to logits, in eval mode.
        digest: hash of the teacher's weights.
        view: function that makes the float view of a batch, the same in every epoch.
        data: DataModule with the training images.
        trainer: Trainer whose device and precision are used.

    Raises:
        ValueError: if the file does not match the teacher and the images.
        FileNotFoundError: if this process cannot read the file that the first process wrote.
    """

    def __init__(
        self, folder: Path, teacher: torch.nn.Module, digest: str, view: View, data: ImageDataModule, trainer: Trainer
    ) -> None:
        train, device = data.splits.train, trainer.strategy.root_device

        def predicted(batch: Batch) -> tuple[Tensor, Tensor]:
            seen = view(Batch(*(part.to(device) for part in batch[:3])))  # data may add more
            return seen, forward(teacher, seen, trainer)

        probes = train.__getitems__(list(range(min(_PROBES, len(train)))))
        seen, expected = (part.cpu() for part in predicted(probes))
        together = Together(trainer)
        images = together.of_first(train.digest)  # it may read all files
        names = digest, images, str(trainer.precision), hashlib.sha256(seen.numpy().tobytes()).hexdigest()
        self.path = folder / f"{hashlib.sha256(' '.join(names).encode()).hexdigest()[:32]}.npy"
        if not together.of_first(self.path.is_file):
            rank_zero_info(f"computing the teacher's logits of {len(train):,} images: {self.path}")
            unfinished = self.path.with_suffix(".unfinished")
            shape = len(train), expected.shape[1]
            logits = None
            if trainer.is_global_zero:
                folder.mkdir(parents=True, exist_ok=True)
                logits = np.lib.format.open_memmap(unfinished, "w+", expected.numpy().dtype, shape)
            for batch in data.in_order(train):
                index, of_all = join([batch.index.to(device)]), join([predicted(batch)[1]])
                if logits is not None:
                    logits[index[index >= 0].cpu().numpy()] = of_all[index >= 0].cpu().numpy()  # -1 is no image
            if logits is not None:
                logits.flush()
                unfinished.replace(self.path)
        together.wait()
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path} was written by the first process but is missing here: use a shared folder"
            )
        self.logits = np.load(self.path, mmap_mode="r")
        found = torch.from_numpy(self.logits[: len(expected)].copy())
        if self.logits.shape[0] != len(train) or not _alike(found, expected):
            raise ValueError(f"{self.path} does not match this teacher and these images: delete the file and run again")

    def join(self, batch: Batch) -> TaughtBatch:
        """Adds their logits to images on the CPU."""
        return TaughtBatch(*batch[:3], torch.from_numpy(self.logits[batch.index.numpy()]))


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= _TOLERANCE * b.abs().max())
