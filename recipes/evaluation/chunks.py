"""Splits features into chunks, so that the memory of an evaluation does not grow with the number of images."""

import torch

BYTES = 16 << 20
"""Largest size of a chunk."""


def chunks(rows: int, numbers: int, dtype: torch.dtype) -> list[slice]:
    """Splits rows, each with so many numbers, into consecutive chunks of at most ``BYTES``, or of one row.

    There is at least one chunk, which is empty if there are no rows.
    """
    size = rows_of_chunk(numbers, dtype)
    return [slice(start, min(start + size, rows)) for start in range(0, max(rows, 1), size)]


def rows_of_chunk(numbers: int, dtype: torch.dtype) -> int:
    """The number of rows of a chunk, at least one."""
    return max(1, BYTES // max(1, numbers * dtype.itemsize))
