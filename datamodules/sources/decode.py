"""Decodes image files of any kind to uint8 images of one size.

This module is the only place that turns pixel values into uint8. By the type of the pixels in the file:

================================================  ===========================================================
pixels                                            uint8
================================================  ===========================================================
1, 2, 4 or 8 bits per channel, or a palette       0..maximum becomes 0..255
16-bit grey, 12-bit grey TIFF                     0..65535, or 0..4095, becomes 0..255, or ``value_range`` does
16-bit colour                                     the upper 8 bits of each channel: Pillow reads no more
32-bit integers, signed integers, floating point  ``value_range`` becomes 0..255; without it, an error
transparent                                       laid on white
CMYK, YCbCr, LAB, HSV                             converted to RGB by Pillow
================================================  ===========================================================

Grey is 0.299 R + 0.587 G + 0.114 B of a colour image. Values outside of ``value_range`` are clipped.
"""

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image, ImageOps
from torch import Tensor

from datamodules.loading.cpus import usable_cpus
from datamodules.reading import LARGEST_SIZE as LARGEST_SIZE
from datamodules.reading import Reading, ValueRange
from datamodules.sources.formats import formats
from datamodules.sources.names import printable

MAX_PIXELS = 178_956_970  # Pillow's own bound: half a gigabyte of RGB
VERSION = 2  # of the pixels that ``decode`` returns: part of the key of whatever is computed from them
_OPENING = Lock()
_CHUNK = 64  # files per task: a task per file would spend more on scheduling than on a small file
_SAMPLES = 16  # files with more than 8 bits whose highest value tells whether a folder uses the range of its pixels
_HEADERS = 1024  # files among which they are sought
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339  # TIFF 6.0 tags
_WHITE_IS_ZERO, _UNSIGNED, _SIGNED = 0, 1, 2


class TooLarge(ValueError):
    """A picture has too many pixels."""


def described(reading: Reading) -> dict[str, Any]:
    """Describes step by step how ``decode`` turns a picture with 8 bits per channel into the input of a network."""
    size, channels = reading.image_size, reading.channels
    steps: dict[str, Any] = {
        "orientation": "upright, by the EXIF tag",
        "transparency": "laid on white",
        "channels": "RGB" if channels == 3 else "grey: 0.299 R + 0.587 G + 0.114 B",
        "jpeg": f"decoded at 1/2, 1/4 or 1/8 of its size, while both sides are at least {2 * (size or 0)} (draft)",
        "resize": f"shorter side to {size}, bilinear with antialiasing (Pillow: resize with BILINEAR and box)",
        "crop": f"{size} × {size} at the centre",
        "scaling": "0..255 becomes 0..1",
        "order": "channels, rows, columns",
    }
    if reading.value_range:
        steps["value_range"] = [*reading.value_range]
    return steps


class UnknownRange(ValueError):
    """Which pixel values are black and white is not known."""


def decode(
    path: Path,
    image_size: int,
    channels: int,
    value_range: ValueRange | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes a picture file to a square image.

    The picture is turned upright (EXIF orientation), laid on white where it is transparent, scaled until its shorter
    side is ``image_size`` (bilinear, antialiased) and cropped at the centre. Large JPEGs are decoded at a half, a
    quarter or an eighth of their size, never below twice ``image_size``.

    Args:
        path: of the file.
        image_size: height and width of the result.
        channels: 1 (grey) or 3 (RGB).
        value_range: pixel values that become 0 and 255, for grey pixels of other types than unsigned 8 bits. If None,
            the range of the type, see the table of this module.
        max_pixels: largest number of pixels of the picture.

    Returns:
        uint8 [channels, image_size, image_size].

    Raises:
        TooLarge: if the picture has more pixels than ``max_pixels``.
        UnknownRange: if the type of the pixels has no range of its own and there is no ``value_range``, or if there is
            one for 16-bit colour.
    """
    mode = _mode(channels)
    with _opened(path) as picture:
        width, height = picture.size
        if width * height > max_pixels:
            raise TooLarge(
                f"it has {width:,} × {height:,} pixels, and max_pixels is {max_pixels:,}: set max_pixels to at least "
                f"{width * height} if there is memory for it, or pass on_error='skip' to leave out such files"
            )
        picture.draft(mode, (2 * image_size, 2 * image_size))
        flat = grey_or_rgb(picture, channels, value_range)
    width, height = flat.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    square = flat.resize((image_size, image_size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    pixels = np.asarray(square)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def grey_or_rgb(picture: Image.Image, channels: int, value_range: ValueRange | None = None) -> Image.Image:
    """Turns a picture of any mode upright and into 8 bits per channel without transparency.

    Args:
        picture: as Pillow opens it; not loaded yet, if the depth of a file is to be known.
        channels: 1 (grey) or 3 (RGB).
        value_range: see ``decode``.
    """
    black_and_white = _black_and_white(picture, value_range)
    number = _number_type(picture)
    _scale_transparent_colour(picture)
    upright = ImageOps.exif_transpose(picture)
    if number is not None:
        upright = _scaled(upright, number, black_and_white)
    flat = _opaque(upright)
    if channels == 1 and flat.mode not in ("1", "L"):  # LAB has no way to grey but this one
        flat = flat.convert("RGB")
    return flat.convert(_mode(channels))


def decode_or_name(
    path: Path,
    image_size: int,
    channels: int,
    value_range: ValueRange | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Decodes like ``decode``.

    Raises:
        ValueError: that names the file, if it cannot be decoded.
        MemoryError: that names the file, if there is too little memory for it.
    """
    try:
        return decode(path, image_size, channels, value_range, max_pixels)
    except MemoryError as error:
        raise MemoryError(
            f"{printable(path)}: there is too little memory to decode it and scale it to an image_size of {image_size}"
        ) from error
    except (UnknownRange, TooLarge) as error:
        raise ValueError(f"{printable(path)}: {error}") from error
    except Exception as error:  # Pillow's plugins raise a dozen kinds
        raise ValueError(
            f"{printable(path)} cannot be read as a picture ({error}): repair or remove it, "
            "or pass on_error='skip' to leave out such files"
        ) from error


def decode_all(
    paths: Sequence[Path],
    image_size: int,
    channels: int,
    skip: bool,
    keep: bool = True,
    value_range: ValueRange | None = None,
    max_pixels: int = MAX_PIXELS,
    into: np.ndarray | None = None,
) -> tuple[Tensor | None, list[int]]:
    """Decodes many files with one thread per usable CPU.

    Args:
        paths: of the N files.
        image_size: height and width of the images.
        channels: 1 (grey) or 3 (RGB).
        skip: whether to skip files that cannot be decoded.
        keep: keeps the images; without, files are only checked.
        value_range: see ``decode``.
        max_pixels: see ``decode``.
        into: zeros of the shape and type of the images, into which they are decoded; None makes some.

    Returns:
        The images, uint8 [N, channels, image_size, image_size] (black where a file was skipped) or none;
        and the positions of the files that were skipped.

    Raises:
        ValueError: that names the first file that cannot be decoded, unless ``skip``.
    """
    if into is None:
        into = np.zeros((len(paths) if keep else 0, channels, image_size, image_size), np.uint8)
    image = into

    def run(start: int) -> list[int]:
        bad = []
        for i in range(start, min(start + _CHUNK, len(paths))):
            try:
                decoded = decode_or_name(paths[i], image_size, channels, value_range, max_pixels)
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


def warn_of_dark_images(paths: Sequence[Path]) -> None:
    """Warns if most images with more than 8 bits use less than a quarter of their range, such as 12-bit data.

    Decodes up to 16 of them, which are drawn at random, always the same; of other files only headers are read.
    """
    found: list[tuple[int, float, bool]] = []
    drawn = random.Random(0)  # noqa: S311
    for path in drawn.sample(paths, min(len(paths), _HEADERS)):
        try:
            with _opened(path) as picture:
                if deep_colour := _is_deep_colour(picture):
                    found.append((int(np.asarray(picture)[..., :3].max()), 255, deep_colour))
                elif _number_type(picture) == np.uint16 and (ends := _black_and_white(picture, None)):
                    found.append((int(np.asarray(picture).max()), max(ends), deep_colour))
        except Exception:  # decoding will name the file
            continue
        if len(found) == _SAMPLES:
            break
    dark = [one for one in found if one[0] < one[1] / 4]
    if len(dark) <= len(found) / 2:
        return
    if any(deep_colour for *_, deep_colour in dark):
        remedy = "Rescale the files to the full range: only the upper 8 bits of 16-bit colour are read"
    else:
        remedy = f"Set value_range to [0, {2 ** max(highest for highest, *_ in dark).bit_length() - 1}]"
        remedy += ", which makes higher values white" * (len(dark) < len(found))
    highest, white, _ = max(dark, key=lambda one: one[0] / one[1])
    rank_zero_warn(
        f"images are almost black: of {len(found)} sampled images with more than 8 bits, {len(dark)} are, and their "
        f"highest pixel value is {highest} of {white:.0f}. {remedy}."
    )


def _opened(path: Path) -> Image.Image:
    """A picture whose pixels are not read yet, of any size: Pillow's bound is one for all threads of the process."""
    with _OPENING:
        bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(path, formats=formats())
        finally:
            Image.MAX_IMAGE_PIXELS = bound


def _mode(channels: int) -> str:
    return "L" if channels == 1 else "RGB"


def _tag(picture: Image.Image, tag: int, default: int) -> int:
    """The first value of a TIFF tag; the default for files of other formats."""
    value: Any = getattr(picture, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)


def _raw_mode(picture: Image.Image) -> str:
    """How the pixels of a file that is not loaded yet are stored, as Pillow calls it: ``L;4`` or ``RGB;16B``."""
    tiles: Any = getattr(picture, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _is_deep_colour(picture: Image.Image) -> bool:
    return not picture.mode.startswith("I") and ";16" in _raw_mode(picture)


def _number_type(picture: Image.Image) -> type[np.number] | None:
    """The type of the pixels that a file has; None for 8 bits and less, which Pillow scales by itself."""
    sample = _tag(picture, _SAMPLE_FORMAT, _UNSIGNED)
    if picture.mode == "F":
        return np.float32
    if picture.mode.startswith("I;16"):
        return np.uint16
    if picture.mode == "I":
        if picture.format in ("PNG", "PPM"):  # Pillow scales PGM of any depth to 16 bits
            return np.uint16
        unsigned = picture.format == "TIFF" and sample == _UNSIGNED
        return np.uint32 if unsigned else np.int32
    return np.int8 if picture.mode == "L" and sample == _SIGNED else None


def _black_and_white(picture: Image.Image, value_range: ValueRange | None) -> ValueRange | None:
    """The pixel values that become 0 and 255; None if they are not known."""
    if value_range and _is_deep_colour(picture):
        raise UnknownRange(
            "value_range cannot apply, because only the upper 8 bits of 16-bit colour are read: rescale the file to "
            "the full range, or leave value_range out"
        )
    ends = value_range
    if ends is None and _number_type(picture) == np.uint16:
        bits = _tag(picture, _BITS, 16)
        ends = (0, 2 ** (bits if bits < 16 else 16) - 1)
    # Pillow inverts 8 bits by itself
    inverted = picture.mode.startswith("I") and _tag(picture, _PHOTOMETRIC, 1) == _WHITE_IS_ZERO
    return ends[::-1] if ends and inverted else ends


def _scale_transparent_colour(picture: Image.Image) -> None:
    """Brings the transparent colour of a PNG to the depth that Pillow gives the pixels."""
    key = picture.info.get("transparency")
    raw = _raw_mode(picture)
    if raw in ("L;2", "L;4") and isinstance(key, int):
        picture.info["transparency"] = key * (85 if raw == "L;2" else 17)
    elif raw.startswith("RGB;16") and isinstance(key, tuple):
        picture.info["transparency"] = tuple(value >> 8 for value in key)


def _scaled(picture: Image.Image, number: type[np.number], ends: ValueRange | None) -> Image.Image:
    """Grey pixels of any type as 8 bits, white where they are transparent."""
    values = np.asarray(picture)
    if values.dtype.itemsize == np.dtype(number).itemsize and values.dtype.kind != "f":
        values = values.astype(values.dtype.newbyteorder("=")).view(number)
    finite = np.isfinite(values)
    if ends is None:
        low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0, 0)
        raise UnknownRange(
            f"its pixels are of the type {np.dtype(number)}, here from {low:g} to {high:g}, and the file does not say "
            "which values are black and white: set value_range, such as [0, 255]"
        )
    if not finite.all():
        raise ValueError("some of its pixels are not finite")
    black, white = ends
    scaled = np.rint((values.astype(np.float64) - black) * (255 / (white - black))).clip(0, 255)
    if isinstance(key := picture.info.get("transparency"), int):
        scaled[values == key] = 255
    return Image.fromarray(scaled.astype(np.uint8))


def _opaque(picture: Image.Image) -> Image.Image:
    """The picture on white."""
    if not picture.has_transparency_data:
        return picture
    if picture.mode == "La":  # has no way to RGBA but this one
        picture = picture.convert("LA")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
