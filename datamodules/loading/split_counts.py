"""Counts what a DataModule found, for one line before training."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datamodules.base import Splits


def counted(splits: "Splits", sources: Sequence["Splits"] = ()) -> str:
    """Says how many classes and images of each split there are, and how many have no label or are left out.

    Args:
        splits: images of the DataModule.
        sources: images of the DataModules that it wraps.
    """
    images = _sizes(splits)
    classes = len(splits.class_names)
    line = f"{classes or 'no'} class{'es' * (classes != 1)}; images: {_listed(images)}"
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    bare = {name: int((part.label < 0).sum()) for name, part in parts.items() if part is not None}
    if classes and any(bare.values()):
        line += f"; without a label: {_listed({name: count for name, count in bare.items() if count})}"
    left_out = sum(sum(_sizes(source).values()) for source in sources) - sum(images.values())
    return line + f"; left out: {left_out:,}" * (left_out > 0)


def _sizes(splits: "Splits") -> dict[str, int]:
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    return {name: 0 if part is None else len(part) for name, part in parts.items()}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())
