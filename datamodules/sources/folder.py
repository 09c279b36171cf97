"""Images from a folder."""

import hashlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from datamodules.base import ImageDataModule, Splits
from datamodules.loading.dataset import ImageDataset, ImageFiles, ImagesInMemory
from datamodules.loading.split import check_fraction, split
from datamodules.paths import OutputPath
from datamodules.sources.decode import decode_all, decode_or_name

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".avif")
_CACHE_VERSION = 1  # of what ``decode`` does and of the cache file's content


class ImageFolder(ImageDataModule):
    """Images from a folder, with or without class subfolders.

    Three layouts are supported:

    * ``root/train/<class>/*``, optionally with ``root/val`` and ``root/test``;
    * ``root/<class>/*`` only, which is split with the classes in proportion and in the same way in every run;
    * images without class folders, which are unlabelled and all used for training.

    Images may have any size and kind (grey, RGB, palette, transparent, CMYK, 16-bit, turned by EXIF; the first frame of
    an animation is used). Each image is scaled until its shorter side is ``image_size`` (bilinear, antialiased) and
    cropped at the centre. Transparent parts become white.

    Args:
        root: folder that holds the images.
        image_size: height and width in pixels to which images are scaled and cropped, >= 1.
        channels: number of channels: 3 (RGB) or 1 (grey).
        val_fraction: share of the training images that is used for validation if ``root/val`` does not exist, in [0,
            1).
        test_fraction: share of the images that is used for testing if ``root`` holds only class folders, in [0, 1).
        memory_limit: number of bytes up to which all images are decoded once and kept in memory (count × channels ×
            image_size²). Above it, workers decode images when they are needed.
        cache: file that keeps the decoded images for the next run. True uses a hidden file in ``root``, false none. A
            change of an image or of a setting makes the file invalid.
        on_error: reaction to a file that cannot be read: ``raise`` an error that names it, or ``skip`` it with a
            warning. ``skip`` decodes all files at the start, also above ``memory_limit``.
        Other arguments: see ``ImageDataModule``.

    Attributes:
        paths: for each of the splits train, val and test, the file at each ``Batch.index``; after ``setup``.

    Raises:
        FileNotFoundError: if ``root`` does not exist or a folder has no images.
        ValueError: if val or test has a class that train has not, if class folders and images are side by side,
            if a file cannot be read, or if an argument is out of its range.
    """

    def __init__(
        self,
        root: str | Path,
        image_size: int = 224,
        channels: Literal[1, 3] = 3,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        memory_limit: int = 2_000_000_000,
        cache: bool | OutputPath = False,
        on_error: Literal["raise", "skip"] = "raise",
        batch_size: int = 256,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if image_size < 1:
            raise ValueError(f"image_size is {image_size}: it must be at least 1")
        if channels not in (1, 3):
            raise ValueError(f"channels is {channels}: it must be 1 (grey) or 3 (RGB)")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}: it must be 'raise' or 'skip'")
        check_fraction("val_fraction", val_fraction)
        check_fraction("test_fraction", test_fraction)
        if val_fraction + test_fraction >= 1:
            raise ValueError(f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on")
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.channels = channels
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.memory_limit = memory_limit
        self.on_error = on_error
        self.cache_file: Path | None = None
        if cache:
            hidden = self.root / f".decoded-{channels}x{image_size}.pt"
            self.cache_file = hidden if cache is True else Path(cache).expanduser()
        self.paths: dict[str, list[Path]] = {}

    @property
    def num_classes(self) -> int:
        """How many classes there are: the folders in ``root/train``, or in ``root``."""
        if self._splits is not None:  # the folder was listed already
            return len(self.class_names)
        train = self.root / "train"
        return sum(path.is_dir() for path in _visible(train if train.is_dir() else _existing(self.root)))

    def prepare_data(self) -> None:
        """Fills the cache, if there is to be one: Lightning lets one process per machine do this."""
        if self.cache_file is not None:
            self._decode(_find(self.root).paths)

    def load(self) -> Splits:
        """Finds the files, and decodes them if they fit in memory."""
        pictures = _find(self.root)
        image, bad = self._decode(pictures.paths)
        parts = self._split(pictures, bad)
        self.paths = {name: [pictures.paths[row] for row in rows.tolist()] for name, rows in parts.items()}

        def dataset(name: str) -> ImageDataset | None:
            if name not in parts:
                return None
            if image is not None:
                return ImagesInMemory(image, pictures.label, parts[name])
            return ImageFiles(self.paths[name], pictures.label[parts[name]], self.image_size, self.channels)

        train = dataset("train")
        if train is None:
            raise ValueError(f"{self.root} has no images left for training")
        return Splits(pictures.class_names, train, dataset("val"), dataset("test"))

    def _split(self, pictures: "_Pictures", bad: list[int]) -> dict[str, Tensor]:
        """The positions of the images of each non-empty split."""
        readable = torch.ones(len(pictures.paths), dtype=torch.bool)
        readable[bad] = False
        parts = {name: torch.tensor(rows)[readable[rows]] for name, rows in pictures.parts.items()}
        alone = "all" in parts
        pool = parts.pop("all" if alone else "train")
        label = pictures.label[pool]
        for i, name in enumerate(pictures.class_names):
            if not (label == i).any():
                raise ValueError(f"none of the training images of the class {name} in {self.root} can be read")
        labelled = bool(pictures.class_names)
        val = round(self.val_fraction * len(pool)) if labelled and "val" not in parts else 0
        test = round(self.test_fraction * len(pool)) if labelled and alone else 0
        drawn = split(label, [val, test])
        parts = dict(zip(("val", "test", "train"), (pool[rows] for rows in drawn), strict=True)) | parts
        return {name: rows for name, rows in parts.items() if len(rows)}

    def _decode(self, paths: list[Path]) -> tuple[Tensor | None, list[int]]:
        """The images, if they are to be in memory, and the positions of the files to skip."""
        keep = len(paths) * self.channels * self.image_size**2 <= self.memory_limit
        skip = self.on_error == "skip"
        if not keep and not skip:
            return None, []
        key = self._key(paths, keep) if self.cache_file else ""
        decoded = _read_cache(self.cache_file, key) if self.cache_file else None
        if decoded is None:
            decoded = decode_all(paths, self.image_size, self.channels, skip, keep)
            if self.cache_file:
                _write_cache(self.cache_file, key, *decoded)
        bad = decoded[1]
        if bad and not skip:
            decode_or_name(paths[bad[0]], self.image_size, self.channels)  # raises again what was skipped then
        if bad:
            names = ", ".join(str(paths[i]) for i in bad[:3]) + (", ..." if len(bad) > 3 else "")
            rank_zero_warn(f"{len(bad)} of {len(paths)} files cannot be read and are left out: {names}")
        return decoded

    def _key(self, paths: list[Path], keep: bool) -> str:
        """What the cache depends on."""
        key = hashlib.sha256(f"{_CACHE_VERSION} {self.channels} {self.image_size} {keep}".encode())
        for path in map(str, paths):
            stat = os.stat(path)
            key.update(f"\n{path[len(str(self.root)) :]} {stat.st_size} {stat.st_mtime_ns}".encode())
        return key.hexdigest()


@dataclass(frozen=True)
class _Pictures:
    """The files of a folder.

    Attributes:
        class_names: of the labels.
        paths: of all files, split after split and class after class, each sorted by name.
        label: int64 [N], of each file, -1 where unlabelled.
        parts: for ``train`` and those of ``val`` and ``test`` that are there, or for ``all`` alone, the positions.
    """

    class_names: tuple[str, ...]
    paths: list[Path]
    label: Tensor
    parts: dict[str, list[int]]


def _find(root: Path) -> _Pictures:
    folders = {"all": _existing(root)}
    if (root / "train").is_dir():
        folders = {name: root / name for name in ("train", "val", "test") if (root / name).is_dir()}
        others = [path.name for path in _visible(root) if path.is_dir() and path.name not in folders]
        if others:
            raise ValueError(
                f"{root} holds train and {others[0]}: the splits are called train, val and test "
                "(if train is one of your classes, use the layout train/<class>/*)"
            )
    found = {name: _find_classes(folder) for name, folder in folders.items()}
    class_names = tuple(next(iter(found.values())))  # of all or train; "" stands for no class
    paths: list[Path] = []
    label: list[int] = []
    parts: dict[str, list[int]] = {}
    for name, classes in found.items():
        start = len(paths)
        for class_name, members in classes.items():
            if class_name and class_name not in class_names:
                raise ValueError(f"{folders[name] / class_name}: train has no class of this name")
            paths += members
            label += [class_names.index(class_name) if class_name else -1] * len(members)
        parts[name] = list(range(start, len(paths)))
    return _Pictures(tuple(name for name in class_names if name), paths, torch.tensor(label), parts)


def _existing(root: Path) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not there: root must be a folder with train/<class>/*, with <class>/*, or with images only"
        )
    return root


def _find_classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class folder; if there are no class folders, the images of the class ""."""
    entries = _visible(folder)
    classes = [path for path in entries if path.is_dir()]
    pictures = [path for path in entries if _is_picture(path)]
    if classes and pictures:
        raise ValueError(
            f"{folder} holds folders ({classes[0].name}) and images ({pictures[0].name}) side by side: "
            "put every image into the folder of its class, or all of them into one folder without others"
        )
    found = {path.name: [file for file in _walk(path) if _is_picture(file)] for path in classes} or {"": pictures}
    for name, members in found.items():
        if not members:
            raise FileNotFoundError(f"{folder / name} holds no images (of {', '.join(EXTENSIONS)})")
    return found


def _walk(folder: Path) -> list[Path]:
    """All visible files below a folder, sorted."""
    files = []
    for path in _visible(folder):
        if path.suffix.lower() in EXTENSIONS or not path.is_dir():  # asking for each picture whether it is a folder
            files.append(path)  # would take longer than listing them
        else:
            files += _walk(path)
    return files


def _visible(folder: Path) -> list[Path]:
    return [folder / name for name in sorted(os.listdir(folder)) if not name.startswith((".", "__MACOSX"))]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _read_cache(path: Path, key: str) -> tuple[Tensor | None, list[int]] | None:
    """What was decoded, mapped from the file, or none if the file is of something else or broken."""
    if not path.is_file():
        return None
    try:
        cache = torch.load(path, mmap=True, weights_only=True)
        return (cache["image"], cache["bad"]) if cache["key"] == key else None
    except Exception:  # any other kind of file: it is overwritten
        return None


def _write_cache(path: Path, key: str, image: Tensor | None, bad: list[int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    try:
        torch.save({"key": key, "image": image, "bad": bad}, temporary)
        temporary.replace(path)  # at once, so that no reader sees half a file
    finally:
        temporary.unlink(missing_ok=True)
