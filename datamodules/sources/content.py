"""Recognises files by their content, so that nothing that was computed from other content is used."""

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.loading.cpus import usable_cpus

_HASH_BYTES = 16
_CHUNK = 64  # files per task
_BLOCK = 1 << 20  # bytes that are read at a time
_SETTLED = 2_000_000_000  # ns: the coarsest clock of a file system, that of FAT


def content_hashes(paths: Sequence[Path]) -> np.ndarray:
    """Hashes the content of files, with one thread per usable CPU.

    Returns:
        uint8 [N, 16]; zeros for a file that cannot be read.
    """
    hashes = np.zeros((len(paths), _HASH_BYTES), np.uint8)

    def run(start: int) -> None:
        for i in range(start, min(start + _CHUNK, len(paths))):
            hashes[i] = np.frombuffer(_content_hash(paths[i]), np.uint8)

    with ThreadPoolExecutor(usable_cpus()) as pool:
        list(pool.map(run, range(0, len(paths), _CHUNK)))
    return hashes


def _content_hash(path: Path) -> bytes:
    content = hashlib.blake2b(digest_size=_HASH_BYTES)
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                content.update(block)
    except OSError:  # such as a link to nowhere
        return bytes(_HASH_BYTES)
    return content.digest()


class DecodedFile:
    """A file that keeps what was decoded from other files, as long as these have the same content.

    A file is unchanged if its size, inode and both of its times are. Otherwise its content is hashed and compared.

    Args:
        path: path of the file, which need not exist.
        settings: settings of the decoding; other settings need another file.
        sources: the files whose content is decoded.
        root: folder of the sources; it may be moved.
    """

    def __init__(self, path: Path, settings: Sequence[object], sources: Sequence[Path], root: Path) -> None:
        self.path = path
        self.sources = sources
        names = b"\0".join(os.fsencode(source)[len(os.fsencode(root)) :] for source in sources)  # may be no text
        self.key = hashlib.sha256(repr(settings).encode() + b"\0" + names).hexdigest()
        self._state: dict[str, Any] = {}

    def read(self) -> dict[str, Any] | None:
        """What was written, mapped from the file; None if the file is of something else or broken.

        Then the sources may be decoded, and ``write`` keeps what they had when this was called.
        """
        found = self._read()
        if found is None:
            state = {"time": time.time_ns(), "stats": _stats(self.sources)}
            self._state = state | {"hashes": torch.from_numpy(content_hashes(self.sources))}
        return found

    def _read(self) -> dict[str, Any] | None:
        if not self.path.is_file():
            return None
        try:
            found = torch.load(self.path, mmap=True, weights_only=True)
            return found["content"] if found["key"] == self.key and self._unchanged(found) else None
        except Exception:  # any other kind of file: it is overwritten
            return None

    def write(self, content: dict[str, Any]) -> None:
        """Writes what was decoded, at once, so that no reader sees half a file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        try:
            torch.save({"key": self.key, "content": content, **self._state}, temporary)
            temporary.replace(self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def _unchanged(self, found: dict[str, Any]) -> bool:
        stats = _stats(self.sources)
        # a file that was written just before may have been written again within one tick of the clock
        recent = (stats[:, :2] > found["time"] - _SETTLED).any(1)
        doubtful = ((stats != found["stats"]).any(1) | recent).nonzero().flatten()
        hashes = content_hashes([self.sources[i] for i in doubtful.tolist()])
        return bool((torch.from_numpy(hashes) == found["hashes"][doubtful]).all())


def _stats(paths: Sequence[Path]) -> Tensor:
    """Times, size and inode of files, int64 [N, 4]; -1 for a file that is not there."""

    def of(path: Path) -> tuple[int, int, int, int]:
        try:
            stat = os.stat(path)
        except OSError:
            return -1, -1, -1, -1
        return stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino & (1 << 63) - 1

    return torch.tensor([of(path) for path in paths], dtype=torch.int64).view(-1, 4)
