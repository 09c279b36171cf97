"""Rows of numbers that come in parts, and from several devices."""

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from datamodules.loading.processes import are_several
from recipes.evaluation.chunks import chunks


class Rows:
    """Rows of numbers that come in parts, in one piece of memory if their number is known before.

    Args:
        empty: no rows, of the type and on the device of all.
        expected: their number; 0 if it is not known.
    """

    def __init__(self, empty: Tensor, expected: int) -> None:
        self.parts = [empty]
        self.expected = expected
        self.used = 0  # rows of the last part

    def __len__(self) -> int:
        return sum(map(len, self.parts[:-1])) + self.used

    @property
    def nbytes(self) -> int:
        """Size of the rows."""
        return sum(part.nbytes for part in self.parts[:-1]) + self.parts[-1][: self.used].nbytes

    def append(self, rows: Tensor) -> None:
        """Takes a part [n, ...]."""
        if not len(rows):
            return
        if self.used + len(rows) > len(self.parts[-1]):
            self.parts[-1] = self.parts[-1][: self.used]
            self.parts.append(self.parts[0].new_empty(max(self.expected, len(rows)), *rows.shape[1:]))
            self.expected = self.used = 0
        self.parts[-1][self.used : self.used + len(rows)] = rows
        self.used += len(rows)

    def joined(self) -> Tensor:
        """All rows; none are left here."""
        *parts, last = self.parts
        whole = _cat([*parts, last[: self.used]])
        self.parts, self.used = [whole.new_empty(0, *whole.shape[1:])], 0
        return whole


def join(parts: list[Tensor]) -> Tensor:
    """Joins tensors [n, ...] of all devices to one, in rank order; each device gives at least one, which may be empty.

    Every device has to call this.
    """
    joined = _cat(parts)
    return _cat(gather_all_tensors(joined)) if are_several() else joined


def in_order(column: Tensor, row: Tensor | None, count: int) -> Tensor:
    """Rows of all devices in the order ``row``, given this device's rows; None leaves the ``count`` rows as they are.

    Devices send chunks, so that beside the result and the shares no more than a chunk is in memory.
    """
    if not are_several():
        return column if row is None else column[row]
    shapes = torch.stack(gather_all_tensors(torch.tensor(column.shape, device=column.device))).tolist()
    width, most = max(shape[1] for shape in shapes), max(shape[0] for shape in shapes)
    place = torch.full((count,), -1, device=column.device)  # -1: a repeated image
    row = torch.arange(count, device=column.device) if row is None else row
    place[row] = torch.arange(len(row), device=column.device)
    places = place.split([shape[0] for shape in shapes])
    whole = column.new_empty(len(row), width)
    column = column if len(column) else column.new_empty(0, width)
    for rows in chunks(most, width * len(shapes), column.dtype):
        for part, to in zip(gather_all_tensors(column[rows]), places):
            known = to[rows] >= 0
            whole[to[rows][known]] = part[known]
    return whole


def _cat(parts: list[Tensor]) -> Tensor:
    parts = [part for part in parts if len(part)] or parts[:1]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def only(rows: Tensor, kept: Tensor) -> Tensor:
    """The rows that are kept, moved together in the place where all of them are."""
    if kept.all():
        return rows
    end = 0
    for part in chunks(len(rows), rows.shape[1], rows.dtype):
        few = rows[part][kept[part]]
        rows[end : end + len(few)] = few
        end += len(few)
    return rows[:end]
