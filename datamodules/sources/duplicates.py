"""Finds files with the same content."""

import hashlib
import os
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor

from datamodules.sources.listing import ImageFile

_BLOCK = 4096  # bytes; the middle tells almost all files of the same size apart
_WHOLE = 1 << 30  # bytes that are read at most to compare whole files
_SAMPLES = 32  # blocks of files that are not read whole
_THREADS = 4
_CHUNK = 256  # files per task


def copies(files: Sequence[ImageFile], of: Sequence[ImageFile]) -> list[tuple[str, str]]:
    """Pairs files with other files of the same content.

    Only files that agree in size are opened, and only those that also agree in 4 KiB in their middle are read whole. If
    these are more than 1 GiB, they are compared in 32 blocks of 4 KiB instead.

    Args:
        files: whose copies are looked for.
        of: among which they are looked for.

    Returns:
        The paths of a file and of its copy, for each of ``files`` that has one.
    """
    ours, theirs = _alike(lambda file: file.size, files, of)
    with ThreadPoolExecutor(_THREADS) as pool:

        def read(content: Callable[[ImageFile], Hashable]) -> dict[str, Hashable]:
            both = [*ours, *theirs]
            found = pool.map(lambda part: [content(file) for file in part], _chunks(both))
            return dict(zip([file.path for file in both], [key for part in found for key in part], strict=True))

        keys = read(_middle)
        ours, theirs = _alike(lambda file: (file.size, keys[file.path]), ours, theirs)
        keys = read(_whole if sum(file.size for file in (*ours, *theirs)) <= _WHOLE else _samples)
        ours, theirs = _alike(lambda file: (file.size, keys[file.path]), ours, theirs)
    copy = {(file.size, keys[file.path]): file.path for file in theirs}
    return [(file.path, copy[file.size, keys[file.path]]) for file in ours]


def _alike(
    key: Callable[[ImageFile], Hashable], ours: Sequence[ImageFile], theirs: Sequence[ImageFile]
) -> tuple[list[ImageFile], list[ImageFile]]:
    """The files of both sides whose key the other side has too."""
    both = {key(file) for file in ours} & {key(file) for file in theirs}
    return [file for file in ours if key(file) in both], [file for file in theirs if key(file) in both]


def _chunks(files: Sequence[ImageFile]) -> list[Sequence[ImageFile]]:
    return [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]


def _middle(file: ImageFile) -> Hashable:
    return _blocks(file, 1)


def _samples(file: ImageFile) -> Hashable:
    return _blocks(file, _SAMPLES)


def _blocks(file: ImageFile, count: int) -> Hashable:
    """A hash of blocks in the middle of equal parts of a file."""
    try:
        opened = os.open(file.path, os.O_RDONLY)
        try:
            part = file.size / count
            starts = [max(0, int((i + 0.5) * part) - _BLOCK // 2) for i in range(count)]
            return hash(b"".join(os.pread(opened, _BLOCK, start) for start in starts))
        finally:
            os.close(opened)
    except OSError:
        return file.path  # like no other; decoding will name it


def _whole(file: ImageFile) -> Hashable:
    try:
        with open(file.path, "rb") as opened:
            return hashlib.file_digest(opened, "blake2b").digest()
    except OSError:
        return file.path
