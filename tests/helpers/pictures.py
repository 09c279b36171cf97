"""Folders of small pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write_pictures(folder: Path, classes: Sequence[str], number: int, size: int = 16) -> None:
    """Writes grey pictures of noise, as ``folder/<class>/<number>.png``."""
    random = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for place in range(number):
            pixels = random.integers(0, 256, (size, size), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{place}.png")
