"""What all pictures of a run share, on figures of their own: nothing of pyplot's global state is used."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from datamodules.sources.names import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMOOTH_FROM = 64  # pixels of a side; smaller images are shown with their pixels


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches; names in it may be in any script that an installed font has."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from recipes.plots.fonts import NamedFigure

    figure = NamedFigure(figsize=(width, height), layout="constrained")
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


def shortened(name: str, most: int = 12) -> str:
    """The first letters of a name, with dots where some are left out; Chinese, Japanese and Korean ones count twice."""
    name = printable(name)
    if display_width(name) <= most:
        return name
    while display_width(name) >= most:
        name = name[:-1]
    return f"{name}…"


def display_width(name: str) -> int:
    """The width of a name in narrow letters."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in name)


def image_grid(
    rows: Sequence[Sequence[Tensor]],
    title: str,
    heads: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    frames: Sequence[Sequence[str | None]] | None = None,
) -> Figure:
    """Draws images in rows and columns.

    Args:
        rows: images [C, H, W], uint8 or float in [0, 1]; sizes may differ.
        title: above all.
        heads: above each column.
        captions: below each image.
        frames: colours around the images, None for no frame.
    """
    width, height = len(rows[0]), len(rows)
    figure = new_figure(0.4 + 1.05 * width, 0.8 + (1.25 if captions else 1.05) * height)
    grid = figure.subplots(height, width, squeeze=False)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            axes = grid[i][j]
            show(axes, image)
            colour = frames[i][j] if frames else None
            for spine in axes.spines.values():
                spine.set_visible(colour is not None)
                spine.set(color=colour, linewidth=3)
            if i == 0:
                axes.set_title(heads[j], fontsize=9)
            if captions:
                axes.set_xlabel(captions[i][j], fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def colour(number: int, of: int) -> Any:
    """The colour of one of several things."""
    from matplotlib import colormaps

    return f"C{number}" if of <= 10 else colormaps["turbo"](number / (of - 1))
