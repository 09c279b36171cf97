"""Where reports of a run go, and the files behind its images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from datamodules.sources.names import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 120


def picture_directory(trainer: Trainer) -> Path | None:
    """Where pictures go; None on devices that draw none. Every device has to call this."""
    directory = trainer.log_dir or trainer.default_root_dir  # log_dir is a collective
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    return Path(directory) / "pictures"


def save(figure: Figure, path: Path, trainer: Trainer) -> None:
    """Writes a figure as PNG and, where that is used, sends it to Weights & Biases."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"pictures/{path.stem}", [str(path)])


def images_of(loader: Any) -> Any:
    """What fetches images by index from the dataset of a loader; None where that has no order."""
    return getattr(getattr(loader, "dataset", None), "images", None)


def file_names(data: Any, loader: Any) -> list[str] | None:
    """The file of each image of a loader, by ``Batch.index``: text, below the root of the data. None for other data.

    Args:
        data: the DataModule; one that has ``paths`` and ``root`` knows the files, as ``ImageFolder`` does.
        loader: one of its loaders.
    """
    paths, dataset = getattr(data, "paths", {}), getattr(loader, "dataset", None)
    split = next((name for name in paths if getattr(data.splits, name) is dataset), None)
    if split is None:
        return None
    folder = getattr(data, "folder", data.root)
    return [printable(path.relative_to(folder)) for path in paths[split]]
