"""Where reports of a run go, and the files behind its images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger

from datamodules import TaskSequence
from datamodules.sources.names import printable
from datamodules.wrappers.task_images import TaskImages
from recipes.base.together import Together

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 120


def picture_directory(trainer: Trainer) -> Path | None:
    """Where pictures go; None on devices that draw none. Every device has to call this.

    The others wait here for what the first device has still to draw.
    """
    Together(trainer).wait()
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

    For a sequence of tasks from several DataModules, the text begins with the root.

    Args:
        data: the DataModule; one that has ``paths`` and ``root`` knows the files, as ``ImageFolder`` does, and a
            sequence of tasks knows those of its DataModules.
        loader: one of its loaders.
    """
    dataset = getattr(loader, "dataset", None)
    if not isinstance(data, TaskSequence) or not isinstance(dataset, TaskImages):
        found = _paths(data, dataset)
        return None if found is None else [printable(path.relative_to(_folder(data))) for path in found]
    names: list[str] = []
    part: Any  # of a sequence, a selection of the images of its source
    source: Any
    for part, (source, _) in zip(dataset.parts, data.task_sources(), strict=True):
        if not len(part):
            continue
        found = _paths(source, part.base)
        if found is None:
            return None
        of_part = [found[row] for row in part.rows.tolist()]
        names += [printable(path if data.then else path.relative_to(_folder(source))) for path in of_part]
    return names


def _paths(data: Any, dataset: Any) -> list[Path] | None:
    paths: dict[str, list[Path]] = getattr(data, "paths", {})
    return next((found for name, found in paths.items() if getattr(data.splits, name) is dataset), None)


def _folder(data: Any) -> Path:
    """The folder below which the names of files begin."""
    folder: Path = getattr(data, "folder", data.root)
    return folder
