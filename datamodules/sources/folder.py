"""Images from a folder."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor

from datamodules.base import ImageDataModule, Splits
from datamodules.loading.dataset import ImageDataset, ImageFiles, ImagesInMemory
from datamodules.loading.processes import are_several
from datamodules.loading.split import check_fraction
from datamodules.loading.split_counts import counted
from datamodules.paths import OutputPath
from datamodules.reading import LARGEST_SIZE, Reading
from datamodules.sources.content import DecodedFile
from datamodules.sources.decode import (
    MAX_PIXELS,
    VERSION,
    ValueRange,
    decode_all,
    decode_or_name,
    warn_of_dark_images,
)
from datamodules.sources.duplicates import copies
from datamodules.sources.layout import Pictures, find, folder_of, label_remedy, training_classes
from datamodules.sources.names import printable
from datamodules.sources.shared import SharedImages


class ImageFolder(ImageDataModule):
    """Images from a folder, with or without class subfolders.

    Three layouts are supported. For predictions, images and folders may stand side by side:

    * ``root/train/<class>/*``, optionally with ``root/val`` and ``root/test``. The folders may also be called training,
      valid, validation or testing, in upper or lower case;
    * ``root/<class>/*`` only, which is split;
    * images without class folders, or in a single folder, which are unlabelled and all used for training. ``root``
      may also be a single file, or a pattern such as ``photos/**/*.jpg``.

    A hash of its name decides to which split an image of ``root/<class>/*`` belongs, such as of "cat/1.png". Images
    that are added or removed therefore move no other image, but for one: if all images of a class would be for
    validation and testing, one of them is for training, until the class has others. A network that was trained on such
    an image remembers its name, and is never tested on it.

    Files in all formats that Pillow reads are images, and HEIF files if ``pillow-heif`` is installed. Others are left
    out, with a line that counts them. Every file is read once, whatever links lead to it. A warning counts the
    validation and test images that are copies of training images.

    Images may have any size and kind (grey, RGB, palette, transparent, CMYK, 16-bit, turned by EXIF; the first frame of
    an animation is used). ``datamodules.sources.decode`` has a table of all pixel types. Each image is scaled until its
    shorter side is ``image_size`` (bilinear, antialiased) and cropped at the centre. Transparent parts become white.

    Args:
        root: folder that holds the images; or a file or a pattern, for images without labels.
        image_size: height and width in pixels to which images are scaled and cropped, from 1 to 16384. If null, uses
            that of a trained network, otherwise 224.
        channels: number of channels: 3 (RGB) or 1 (grey). If null, uses that of a trained network, otherwise 3.
        val_fraction: expected share of the labelled training images that is used for validation if ``root/val`` does
            not exist, in [0, 1).
        test_fraction: expected share of the images that is used for testing if ``root`` holds only class folders, in
            [0, 1).
        memory_limit: number of bytes up to which all images are decoded once and kept in memory (count × channels ×
            image_size²). Above it, workers decode images when they are needed.
        value_range: pixel values that become black and white, such as [0, 4095] for 12-bit data in 16-bit files.
            Applies to grey images of other types than unsigned 8 bits. If null, uses that of a trained network,
            otherwise the range of 16-bit or 12-bit integers; 32-bit integers, signed integers and floating point
            numbers are then an error.
        cache: file that keeps the decoded images for the next run. True uses a hidden file in ``root``, false none. A
            change of the content of an image or of a setting makes the file invalid.
        on_error: reaction to a file that cannot be read: ``raise`` an error that names it, or ``skip`` it with a
            warning. ``skip`` decodes all files at the start, also above ``memory_limit``.
        split_by: rule of the split: ``name``, or ``position`` in the sorted list of all images, which has exact shares.
            With ``position``, one image more or less changes the whole split. Version 0.1 used it, and its runs
            still do.
        max_pixels: largest number of pixels of a picture, >= 1. A picture with more, which may take gigabytes of
            memory, is a file that cannot be read (``on_error``).
        Other arguments: see ``ImageDataModule``.

    Raises:
        FileNotFoundError: if ``root`` does not exist or a folder has no images.
        ValueError: if val or test has a class that train has not (for predictions, its images are unlabelled), if
            class folders and images are side by side, if there are folders of splits without train, if a file cannot be
            read, or if an argument is out of its range.
    """

    reading_options: ClassVar = {name: name for name in Reading._fields}
    usual_reading = Reading(224, 3)

    def __init__(
        self,
        root: str | Path,
        image_size: int | None = None,
        channels: Literal[1, 3] | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        memory_limit: int = 2_000_000_000,
        value_range: tuple[float, float] | None = None,
        cache: bool | OutputPath = False,
        on_error: Literal["raise", "skip"] = "raise",
        batch_size: int = 256,
        num_workers: int | None = None,
        split_by: Literal["name", "position"] = "name",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if image_size is not None and not 1 <= image_size <= LARGEST_SIZE:
            raise ValueError(f"image_size is {image_size}: it must be at least 1 and at most {LARGEST_SIZE}")
        if channels not in (1, 3, None):
            raise ValueError(f"channels is {channels}: it must be 1 (grey) or 3 (RGB)")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}: it must be 'raise' or 'skip'")
        if value_range is not None and not -math.inf < value_range[0] < value_range[1] < math.inf:
            raise ValueError(
                f"value_range is {list(value_range)}: it must be the values of black and white, in ascending order, "
                "such as [0, 4095]"
            )
        if split_by not in ("name", "position"):
            raise ValueError(f"split_by is {split_by!r}: it must be 'name' or 'position'")
        if max_pixels < 1:
            raise ValueError(f"max_pixels is {max_pixels}: it must be at least 1")
        check_fraction("val_fraction", val_fraction)
        check_fraction("test_fraction", test_fraction)
        if val_fraction + test_fraction >= 1:
            raise ValueError(f"val_fraction {val_fraction} and test_fraction {test_fraction} leave nothing to train on")
        self.root = Path(root).expanduser()
        self._stated = Reading(image_size, channels, None if value_range is None else (value_range[0], value_range[1]))
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.memory_limit = memory_limit
        self.on_error = on_error
        self.split_by = split_by
        self.max_pixels = max_pixels
        self._cache = cache
        self._pictures: Pictures | None = None
        self._found: _Found | None = None
        self._kept: tuple[str, ...] = ()
        self._shared: SharedImages | None = None
        self._paths: dict[str, list[Path]] = {}
        self._matched_paths: dict[str, list[Path]] = {}

    @property
    def image_size(self) -> int:
        """Height and width in pixels to which images are scaled and cropped."""
        return self._chosen.image_size or 0

    @property
    def channels(self) -> int:
        """1 (grey) or 3 (RGB)."""
        return self._chosen.channels or 0

    @property
    def value_range(self) -> ValueRange | None:
        """Pixel values that become black and white."""
        return self._chosen.value_range

    @property
    def reading(self) -> Reading:
        """How the images are read, and which are for training because their class has no others."""
        return self._chosen.keeping(Reading(for_training=self._kept))

    @property
    def _for_training(self) -> tuple[str, ...]:
        """Names of images that a network was trained on because their class had no others."""
        return self._chosen.for_training or ()

    @property
    def _decoding(self) -> tuple[int, int, ValueRange | None, int]:
        """Arguments of ``decode``."""
        return self.image_size, self.channels, self.value_range, self.max_pixels

    @property
    def folder(self) -> Path:
        """The folder that the images are in: ``root``, or the folder of a file or before the wildcards."""
        return folder_of(self.root)

    @property
    def cache_file(self) -> Path | None:
        """File that keeps the decoded images; null without."""
        if not self._cache:
            return None
        hidden = self.folder / f".decoded-{self.channels}x{self.image_size}.pt"
        return hidden if self._cache is True else Path(self._cache).expanduser()

    @property
    def num_classes(self) -> int:
        """How many classes there are: the folders in ``root/train``, or in ``root``; 0 if there is one folder only."""
        if self._splits is not None:  # the folder was listed already
            return len(self.class_names)
        names = training_classes(self.root)
        return len(names) if len(names) > 1 else 0

    def check_labelled(self) -> None:
        """Refuses images without labels, with what to do; before ``setup`` too.

        Raises:
            ValueError: if the images have no labels.
        """
        if self.num_classes == 0:
            raise ValueError(f"the images in {self.root} have no labels: {label_remedy(self.root)}")

    @property
    def paths(self) -> dict[str, list[Path]]:
        """For each of the splits train, val and test, the file at each ``Batch.index``; after ``setup``."""
        return self._matched_paths if self._matched else self._paths

    def match_classes(self, names: Sequence[str], strict: bool = True) -> None:
        """Numbers the labels as a trained classifier does; see ``ImageDataModule``.

        A single folder that is called like one of the classes holds images of this class. Folders of which none is
        called like a class are no class folders, if ``strict`` is false: their images are unlabelled and not split.
        """
        self._matched_paths = self._paths
        found = self._found
        if found is not None and (name := found.pictures.only_folder) is not None and name in names:
            label = torch.tensor([0 if file.class_name == name else -1 for file in found.pictures.files])
            self._arrange(replace(found, pictures=replace(found.pictures, class_names=(name,), label=label)), strict)
        elif found is not None and not strict and self.class_names and not {*self.class_names} & {*names}:
            label = torch.full_like(found.pictures.label, -1)
            self._arrange(replace(found, pictures=replace(found.pictures, class_names=(), label=label)), draw=False)
        super().match_classes(names, strict)

    def _arrange(self, found: "_Found", draw: bool) -> None:
        """Uses other labels and splits, until the next ``setup``."""
        parts = self._split(found.pictures, found.bad, draw)
        self._matched, self._matched_paths = self._splits_of(found, parts), found.pictures.paths_of(parts)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the position in the epoch, and the rule of the split."""
        return {**super().state_dict(), "split_by": self.split_by}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets the position at which training resumes; warns if the run that wrote the checkpoint split otherwise."""
        position = dict(state_dict)
        rule = position.pop("split_by", "position")  # of version 0.1
        if rule != self.split_by and self._found is not None and not self._found.pictures.has_splits:
            rank_zero_warn(
                f"the run of the checkpoint has split_by={rule!r}, and this ImageFolder {self.split_by!r}: if it reads "
                f"the same images, it may test on training images. Pass split_by={rule!r}"
            )
        super().load_state_dict(position)
        self._keep_training_images()

    def _keep_training_images(self) -> None:
        """Splits again without the images that the checkpoint's network was trained on, if they are in other splits."""
        network = getattr(self.trainer, "lightning_module", None)
        reading = getattr(network, "reading", None)
        if self._found is None or not isinstance(reading, Reading) or self._chosen.keeping(reading) == self._chosen:
            return
        self._of_network = self._of_network.keeping(reading)
        matched, self._matched = self._matched, None
        parts = self._split(self._found.pictures, self._found.bad, draw=bool(self._found.pictures.class_names))
        self._splits, self._paths = self._splits_of(self._found, parts), self._found.pictures.paths_of(parts)
        self._read_with = self._all_chosen
        if matched is not None:
            self.match_classes(matched.class_names, strict=False)

    def prepare_data(self) -> None:
        """Decodes the images for all processes of a machine: Lightning lets one of them do this.

        They go into the cache, if there is to be one. Otherwise several processes share them in memory.
        """
        self._ask_network()
        if self.cache_file is not None:
            self._decode(find(self.root).paths)
        elif are_several() and (self._splits is None or self._read_with != self._all_chosen):
            self._share(find(self.root).paths)

    def setup(self, stage: str | None = None) -> None:
        """Reads the images, once.

        Raises:
            ValueError: if val or test has a class that train has not, unless the stage is ``predict``.
        """
        self._ask_network()
        if self._splits is None or self._pictures is None:
            self._pictures = find(self.root)
        if self._pictures.unknown is not None and stage != "predict":
            raise ValueError(f"{self._pictures.unknown}: train has no class of this name")
        if self._pictures.listing.mixed is not None and stage != "predict":
            raise ValueError(self._pictures.listing.mixed)
        super().setup(stage)

    def load(self) -> Splits:
        """Decodes the files if they fit in memory."""
        pictures = self._pictures or find(self.root)
        broken = pictures.listing.broken
        if broken and self.on_error == "raise":
            raise ValueError(
                f"{broken[0]} is a link to a file that is not there: repair or remove it, or pass on_error='skip' to "
                "leave out such files"
            )
        image, bad = self._decode(pictures.paths)
        if self.value_range is None:
            warn_of_dark_images(pictures.paths)
        self._found = _Found(pictures, image, bad)
        parts = self._split(pictures, bad, draw=bool(pictures.class_names))
        self._paths = pictures.paths_of(parts)
        drawn = self.split_by == "name" and bool(pictures.class_names)
        fractions = self.val_fraction, self.test_fraction
        self._kept = pictures.only_for_want_of_others(parts, *fractions) if drawn else ()
        return self._splits_of(self._found, parts)

    def _splits_of(self, found: "_Found", parts: dict[str, Tensor]) -> Splits:
        """The datasets."""
        pictures, image = found.pictures, found.image
        paths = pictures.paths_of(parts)

        def dataset(name: str) -> ImageDataset | None:
            if name not in parts:
                return None
            if image is not None:
                return ImagesInMemory(image, pictures.label, parts[name])
            label = pictures.label[parts[name]]
            return ImageFiles(paths[name], label, *self._decoding)

        train = dataset("train")
        if train is None:
            raise ValueError(f"{self.root} has no images left for training")
        return Splits(pictures.class_names, train, dataset("val"), dataset("test"))

    def _split(self, pictures: Pictures, bad: list[int], draw: bool) -> dict[str, Tensor]:
        """The positions of the images of each non-empty split; missing ones are drawn only with ``draw``."""
        val, test = (self.val_fraction, self.test_fraction) if draw else (0.0, 0.0)
        return pictures.split(val, test, self.split_by, bad, self._for_training)

    def _remedy(self) -> str:
        drawn = self._found is not None and not self._found.pictures.has_splits
        return ": set val_fraction and test_fraction to 0 to predict all" * drawn

    @rank_zero_only
    def _tell(self) -> None:
        """Prints what was found, what was left out, and the copies of training images in other splits."""
        if self._found is None:
            return
        pictures, bad = self._found.pictures, self._found.bad
        parts = self._split(pictures, bad, draw=bool(pictures.class_names))
        rule = f" (split by {self.split_by})" if not pictures.has_splits and pictures.class_names else ""
        rank_zero_info(f"{self.root}: {counted(self.splits)}{rule}")
        for name, fraction in (("val", self.val_fraction), ("test", self.test_fraction)):
            if rule and fraction > 0 and name not in parts:
                rank_zero_info(
                    f"{self.root}: no image is in the split {name}, with a {name}_fraction of {fraction:g} of "
                    f"{len(pictures.files)} images: raise it, or make a folder {name} beside a folder train"
                )
        if pictures.only_folder is not None:
            only = next(iter(pictures.folders.values())) / pictures.only_folder
            remedy = label_remedy(self.root)
            rank_zero_warn(f"{only} is the only folder with images: they have no labels. For labels, {remedy}")
        for line in pictures.listing.notes():
            rank_zero_info(f"{self.root}: {line}")
        if broken := pictures.listing.broken:
            rank_zero_warn(
                f"{len(broken)} links lead to no file and are left out: {broken[0]}{', ...' * (len(broken) > 1)}"
            )
        files = {name: [pictures.files[row] for row in rows.tolist()] for name, rows in parts.items()}
        found = dict(copies([*files.get("val", ()), *files.get("test", ())], files["train"]))
        for name in ("val", "test"):
            if copied := [file.path for file in files.get(name, ()) if file.path in found]:
                copy, original = (os.path.relpath(path, self.folder) for path in (copied[0], found[copied[0]]))
                rank_zero_warn(
                    f"copies of training images: {len(copied):,} of {len(files[name]):,} {name} images in {self.root}, "
                    f"such as {copy} of {original}. They make results look better: remove them"
                )

    def _decode(self, paths: list[Path]) -> tuple[Tensor | None, list[int]]:
        """The images, if they are to be in memory, and the positions of the files to skip."""
        keep = self._keeps(paths)
        if not keep and self.on_error == "raise":
            return None, []
        settings = VERSION, *self._decoding, keep
        cache = DecodedFile(self.cache_file, settings, paths, self.folder) if self.cache_file else None
        if cache and (found := cache.read()):
            image, bad = found["image"], found["bad"]
        elif are_several() and not cache and (shared := SharedImages(settings, paths).read()):
            image, bad = shared
        else:
            image, bad = self._decode_all(paths)
            if cache:
                cache.write({"image": image, "bad": bad})
        if bad:
            self._report(paths, bad)
        return image, bad

    def _keeps(self, paths: list[Path]) -> bool:
        """Whether the images are to be in memory."""
        return len(paths) * self.channels * self.image_size**2 <= self.memory_limit

    def _decode_all(self, paths: list[Path], into: np.ndarray | None = None) -> tuple[Tensor | None, list[int]]:
        size, channels, value_range, most = self._decoding
        skip = self.on_error == "skip"
        return decode_all(paths, size, channels, skip, self._keeps(paths), value_range, most, into)

    def _share(self, paths: list[Path]) -> None:
        """Decodes the images for all processes of this machine, if they are to be decoded at the start."""
        keep = self._keeps(paths)
        if keep or self.on_error == "skip":
            shape = (len(paths), self.channels, self.image_size, self.image_size) if keep else None
            self._shared = SharedImages((VERSION, *self._decoding, keep), paths)
            try:
                self._shared.decode(shape, lambda into: self._decode_all(paths, into)[1])
            except (ValueError, MemoryError):  # every process meets it again in ``setup``, and none waits
                self._shared.remove()

    def _all_have_read(self) -> None:
        if self._shared is not None:
            self._shared.remove()
        super()._all_have_read()

    def _report(self, paths: list[Path], bad: list[int]) -> None:
        """Counts and names the files that cannot be read, or raises the error of the first."""
        reason = ""
        try:
            decode_or_name(paths[bad[0]], *self._decoding)
        except ValueError as error:
            if self.on_error == "raise":  # the run that made the cache skipped them
                raise
            reason = f". {error}"
        names = ", ".join(printable(paths[i]) for i in bad[:3]) + (", ..." if len(bad) > 3 else "")
        rank_zero_warn(f"{len(bad)} of {len(paths)} files cannot be read and are left out: {names}{reason}")


@dataclass(frozen=True)
class _Found:
    """The files, their images if they are in memory, and the positions of those that cannot be read."""

    pictures: Pictures
    image: Tensor | None
    bad: list[int]
