"""Decodes image files of any kind to uint8 images of one size."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.loading.cpus import usable_cpus
from datamodules.sources.formats import formats

_CHUNK = 64  # files per task: a task per file would spend more on scheduling than on a small file


def decode(path: Path, image_size: int, channels: int) -> np.ndarray:
    """Decodes a picture file to a square image.

    The picture is turned upright (EXIF orientation), laid on white where it is transparent, scaled until its shorter
    side is ``image_size`` (bilinear, antialiased) and cropped at the centre. 16-bit grey is scaled from 0..65535 to
    0..255. Large JPEGs are decoded at a half, a quarter or an eighth of their size, never below twice ``image_size``.

    Args:
        path: of the file.
        image_size: height and width of the result.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 [channels, image_size, image_size].
    """
    mode = "L" if channels == 1 else "RGB"
    with Image.open(path, formats=formats()) as picture:
        picture.draft(mode, (2 * image_size, 2 * image_size))
        upright = _eight_bit(ImageOps.exif_transpose(picture)).convert(mode)
    width, height = upright.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = upright.resize(
        (image_size, image_size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    pixels = np.asarray(square)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def decode_or_name(path: Path, image_size: int, channels: int) -> np.ndarray:
    """Decodes like ``decode``.

    Raises:
        ValueError: that names the file, if it cannot be decoded.
    """
    try:
        return decode(path, image_size, channels)
    except Exception as error:  # Pillow's plugins raise a dozen kinds
        raise ValueError(
            f"{path} cannot be read as a picture ({error}): repair or remove it, "
            "or pass on_error='skip' to leave out such files"
        ) from error


def decode_all(
    paths: Sequence[Path], image_size: int, channels: int, skip: bool, keep: bool = True
) -> tuple[Tensor | None, list[int]]:
    """Decodes many files with one thread per usable CPU.

    Args:
        paths: of the N files.
        image_size: height and width of the images.
        channels: 1 (grey) or 3 (RGB).
        skip: whether to skip files that cannot be decoded.
        keep: keeps the images; without, files are only checked.

    Returns:
        The images, uint8 [N, channels, image_size, image_size] (black where a file was skipped) or none;
        and the positions of the files that were skipped.

    Raises:
        ValueError: that names the first file that cannot be decoded, unless ``skip``.
    """
    image = np.zeros((len(paths) if keep else 0, channels, image_size, image_size), np.uint8)

    def run(start: int) -> list[int]:
        bad = []
        for i in range(start, min(start + _CHUNK, len(paths))):
            try:
                decoded = decode_or_name(paths[i], image_size, channels)
            except ValueError:
                if not skip:
                    raise
                bad.append(i)
            else:
                if keep:
                    image[i] = decoded
        return bad

    pool = ThreadPoolExecutor(usable_cpus())
    try:
        found: Iterator[list[int]] = pool.map(run, range(0, len(paths), _CHUNK))
        bad = [i for chunk in found for i in chunk]
    finally:
        pool.shutdown(cancel_futures=True)
    return torch.from_numpy(image) if keep else None, bad


def _eight_bit(picture: Image.Image) -> Image.Image:
    """The picture with 8 bits per channel and no transparency."""
    if picture.mode.startswith("I"):
        grey = np.asarray(picture).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    if picture.mode == "F":
        raise ValueError("its pixels are floating point numbers of unknown range")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture
