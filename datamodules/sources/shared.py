"""Images that one process of a machine decodes, and the others map."""

import hashlib
import json
import math
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_FOLDERS = (Path("/dev/shm"), Path(tempfile.gettempdir()))  # noqa: S108  # of the machine itself: memory first
_RUN = ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "SLURM_JOB_ID", "SLURM_STEP_ID")
_FREE = 0.9  # of the free space, which others need too


class SharedImages:
    """A file of decoded images, which the processes of a run share on a machine.

    One process calls ``decode`` before the others call ``read``. The images are in memory once, and no longer than a
    process uses them: a file whose name is removed stays for those that have read it. It is removed at the latest when
    the process that has decoded it ends.

    Args:
        settings: what the decoded images depend on, beside the files.
        paths: paths of the files that are decoded.
    """

    def __init__(self, settings: Sequence[object], paths: Sequence[Path]) -> None:
        run = [os.environ.get(name) for name in _RUN]
        names = b"\0".join(map(os.fsencode, paths))
        self.name = f"images-{hashlib.sha256(repr((run, settings)).encode() + names).hexdigest()[:32]}"
        self._made: list[Path] = []

    def decode(self, shape: tuple[int, ...] | None, decode: Callable[[np.ndarray | None], list[int]]) -> bool:
        """Decodes the images into the file; returns whether there was room for it.

        Args:
            shape: of all images, [N, C, H, W]; None if they are not kept.
            decode: decodes the images, into an array of this shape if there is one, and returns the positions of files
                that cannot be read.
        """
        size = math.prod(shape) if shape else 0
        for folder in _FOLDERS:
            file = folder / self.name
            if not _make(file, size):
                continue
            note = file.with_suffix(".json")
            self._made += [file, note]
            weakref.finalize(self, _remove, [*self._made], os.getpid())
            bad = decode(np.memmap(file, np.uint8, "r+", shape=shape) if shape else None)
            note.unlink(missing_ok=True)
            with note.open("x") as written:
                json.dump({"shape": shape, "bad": bad}, written)
            return True
        return False

    def read(self) -> tuple[Tensor | None, list[int]] | None:
        """The images, mapped from the file, if they were kept, and the positions; None if there is no file."""
        for folder in _FOLDERS:
            file = folder / self.name
            try:
                if file.stat().st_uid == os.getuid():  # not what somebody else has put there
                    found = json.loads(file.with_suffix(".json").read_text())
                    shape = found["shape"]
                    image = torch.from_numpy(np.memmap(file, np.uint8, "c", shape=tuple(shape))) if shape else None
                    return image, found["bad"]
            except (OSError, ValueError):  # no file here, or one that is not complete
                continue
        return None

    def remove(self) -> None:
        """Removes the name of the file, in the process that has decoded it."""
        _remove(self._made, os.getpid())


def _make(file: Path, size: int) -> bool:
    """Makes a file of this size of which all bytes are there: a disk that is full later would kill the process."""
    try:
        if shutil.disk_usage(file.parent).free * _FREE < size:
            return False
        file.unlink(missing_ok=True)
        with open(file, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as made:
            os.posix_fallocate(made.fileno(), 0, max(size, 1))
        return True
    except (OSError, AttributeError):  # no such folder, no room, or a system without this function
        file.unlink(missing_ok=True)
        return False


def _remove(files: list[Path], process: int) -> None:
    if os.getpid() == process:  # not in a worker that was forked
        for file in files:
            file.unlink(missing_ok=True)
