"""What all pictures of a run share, on figures of their own: nothing of pyplot's global state is used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 120
_SMOOTH_FROM = 64  # pixels of a side; smaller images are shown with their pixels


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def show(axes: Axes, image: Tensor) -> None:
    """Draws an image [C, H, W], uint8 or float in [0, 1], without ticks."""
    pixels = image.detach().cpu()
    pixels = pixels.float().clamp(0, 1) if pixels.is_floating_point() else pixels.float() / 255
    smooth = "nearest" if min(pixels.shape[-2:]) < _SMOOTH_FROM else "antialiased"
    axes.imshow(pixels.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation=smooth)
    axes.set_xticks([])
    axes.set_yticks([])


def save(figure: Figure, path: Path, trainer: Trainer) -> None:
    """Writes a figure as PNG and, where that is used, sends it to Weights & Biases."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(f"pictures/{path.stem}", [str(path)])


def picture_directory(trainer: Trainer) -> Path | None:
    """Where pictures go; None on devices that draw none. Every device has to call this."""
    directory = trainer.log_dir or trainer.default_root_dir  # log_dir is a collective
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    return Path(directory) / "pictures"


def images_of(loader: Any) -> Any:
    """What fetches images by index from the dataset of a loader; None where that has no order."""
    return getattr(getattr(loader, "dataset", None), "images", None)


def shortened(name: str, most: int = 12) -> str:
    """The first letters of a name, with dots where some are left out."""
    return name if len(name) <= most else name[: most - 1] + "…"
