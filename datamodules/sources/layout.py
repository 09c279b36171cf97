"""What a folder of images holds: its splits, classes and files."""

import glob
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datamodules.loading.split import only_for_want_of_others, split, split_by_name
from datamodules.sources.listing import ImageFile, Listing, class_folders, list_images, list_paths
from datamodules.sources.names import printable

SPLIT_NAMES = {  # of folders, in lower case
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}


@dataclass(frozen=True)
class Pictures:
    """The files of a folder.

    Attributes:
        root: the folder.
        folders: folders of the splits, train first; the root as ``all`` if it has none.
        class_names: names of the labels.
        only_folder: name of the folder that holds all images, if there is one; it is no class.
        files: all of them, split after split and class after class, each sorted by name.
        paths: paths of the files.
        label: int64 [N], of each file, -1 where unlabelled.
        unknown: folder of a class that is not in train, if there is one; its files are unlabelled.
        parts: for ``train`` and those of ``val`` and ``test`` that are there, or for ``all`` alone, the positions.
        listing: with what was left out.
    """

    root: Path
    folders: dict[str, Path]
    class_names: tuple[str, ...]
    only_folder: str | None
    files: list[ImageFile]
    paths: list[Path]
    label: Tensor
    parts: dict[str, list[int]]
    listing: Listing
    unknown: Path | None

    @property
    def has_splits(self) -> bool:
        """Whether the folder is divided into splits."""
        return "all" not in self.parts

    def split(
        self, val: float, test: float, by: str, bad: list[int], for_training: Collection[str] = ()
    ) -> dict[str, Tensor]:
        """Returns the positions of the images of each split that is not empty. Splits without a folder are drawn.

        Args:
            val: expected share of the images that is drawn for validation.
            test: expected share of the images that is drawn for testing, if there are no folders of splits.
            by: ``name`` or ``position``.
            bad: positions of the files that cannot be read.
            for_training: names of images that are not drawn, by ``name``.

        Raises:
            ValueError: if no training image of a class can be read.
        """
        readable = torch.ones(len(self.paths), dtype=torch.bool)
        readable[bad] = False
        parts = {name: torch.tensor(rows)[readable[rows]] for name, rows in self.parts.items()}
        drawn_from = "train" if self.has_splits else "all"
        pool = parts.pop(drawn_from)
        label = self.label[pool]
        for i, name in enumerate(self.class_names):
            if not (label == i).any():
                raise ValueError(f"none of the training images of the class {name} in {self.root} can be read")
        val = 0.0 if "val" in parts else val
        test = 0.0 if self.has_splits else test
        if by == "position":
            drawn = split(label, [round(val * len(pool)), round(test * len(pool))])
            drawn = [drawn[2], drawn[0], drawn[1]]
        else:
            drawn = list(split_by_name(self._names(drawn_from, pool), label, val, test, for_training))
        parts = dict(zip(("train", "val", "test"), (pool[rows] for rows in drawn), strict=True)) | parts
        return {name: rows for name, rows in parts.items() if len(rows)}

    def _names(self, part: str, rows: Tensor) -> Iterator[str]:
        """The names that the split goes by, of files in the folder of a part."""
        folder = len(os.path.join(self.folders[part], ""))
        return (self.files[row].path[folder:] for row in rows.tolist())

    def only_for_want_of_others(self, parts: dict[str, Tensor], val: float, test: float) -> tuple[str, ...]:
        """The names of the images that are for training because their class has no others, given the split by name."""
        drawn_from = "train" if self.has_splits else "all"
        val, test = 0.0 if "val" in self.parts else val, 0.0 if self.has_splits else test
        return only_for_want_of_others(self._names(drawn_from, parts["train"]), val, test)

    def paths_of(self, parts: dict[str, Tensor]) -> dict[str, list[Path]]:
        """Returns the files of each split, given their positions."""
        return {name: [self.paths[row] for row in rows.tolist()] for name, rows in parts.items()}


def find(root: Path) -> Pictures:
    """Finds the images of a folder.

    Args:
        root: folder, file, or pattern of files and folders such as ``photos/*.jpg``, where ``**`` stands for any
            folders.

    Raises:
        FileNotFoundError: if there is no root, or a folder has no images.
        ValueError: if the folders are arranged otherwise than ``ImageFolder`` states.
    """
    if (named := _paths(root)) is None:
        folders = _split_folders(root)
        listing = list_images(folders)
    else:
        folders = {"all": folder_of(root)}
        listing = list_paths(named, "all")
    first = next(iter(folders))  # all or train
    class_names = listing.classes[first]
    files: list[ImageFile] = []
    parts: dict[str, list[int]] = {}
    unknown: list[Path] = []
    for name, members in listing.files.items():
        unknown += [folders[name] / each for each in sorted(set(listing.classes[name]) - {*class_names, ""})]
        if not members:
            raise _no_images(root if named is not None else folders[name], name, listing)
        parts[name] = list(range(len(files), len(files) + len(members)))
        files += members
    filled = {file.class_name for file in listing.files[first]}
    if empty := [name for name in class_names if name not in filled]:
        raise _no_images(folders[first] / empty[0], first, listing)
    only = class_names[0] if len(class_names) == 1 else None
    labels = {} if only is not None else {name: i for i, name in enumerate(class_names)}
    label = torch.tensor([labels.get(file.class_name, -1) for file in files])
    paths = [Path(file.path) for file in files]
    names = tuple(map(printable, labels))
    first_unknown = next(iter(unknown), None)
    return Pictures(root, folders, names, only or None, files, paths, label, parts, listing, first_unknown)


def folder_of(root: Path) -> Path:
    """The folder that the images of a root are in: itself, or that of a file, or what precedes the wildcards."""
    if root.is_dir():
        return root
    parts = root.parent.parts
    plain = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return Path(*parts[:plain])


def _paths(root: Path) -> list[str] | None:
    """The files and folders that a file or a pattern stands for; None for a folder.

    Raises:
        FileNotFoundError: if a pattern has no match.
    """
    if root.is_file():
        return [str(root)]
    if root.exists() or not glob.has_magic(str(root)):
        return None
    found = sorted(glob.glob(str(root), recursive=True))
    if not found:
        raise FileNotFoundError(f"no file matches {root}: give a folder, a file, or a pattern such as photos/*.jpg")
    return found


def training_classes(root: Path) -> list[str]:
    """The names of the class folders in ``root/train``, or in ``root``, without listing what they hold."""
    if _paths(root) is not None:
        return []
    return class_folders(next(iter(_split_folders(root).values())))


def label_remedy(root: Path) -> str | None:
    """How to get labels for the images of a root with one folder only; None where there are several."""
    if _paths(root) is not None:
        return "set root to a folder that has a folder for each class"
    parent = next(iter(_split_folders(root).values()))
    names = class_folders(parent)
    if len(names) > 1:
        return None
    only = parent / names[0] if names else parent
    inner = class_folders(only) if names and only.is_dir() else []
    if inner:
        return f"set root to {only}, whose folders are {', '.join(inner[:3])}"
    return f"make a folder for each class in {parent}"


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders of the splits, train first; the whole root as ``all`` if it has none.

    Raises:
        FileNotFoundError: if there is no root.
        ValueError: if there are folders of splits without train, or with other folders beside them.
    """
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not there: root must be a folder with train/<class>/*, with <class>/*, or with images only; or "
            "a file or a pattern such as photos/*.jpg"
        )
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    splits = {name: split for name in names for split, others in SPLIT_NAMES.items() if name.lower() in others}
    if not splits:
        return {"all": root}
    others = [name for name in names if name not in splits]
    if "train" not in splits.values():
        raise ValueError(
            f"{root} holds {' and '.join(splits)} without train: name the folder with the training images train, or "
            f"set root to {root / next(iter(splits))} to read that folder alone"
            + f" (if {next(iter(splits))} is one of your classes, use the layout train/<class>/*)"
            * bool(others)
        )
    if others:
        raise ValueError(
            f"{root} holds {next(iter(splits))} and {others[0]}: the splits are called train, val and test "
            "(if train is one of your classes, use the layout train/<class>/*)"
        )
    found: dict[str, Path] = {}
    for name in SPLIT_NAMES:
        folders = [folder for folder, of in splits.items() if of == name]
        if len(folders) > 1:
            raise ValueError(f"{root} holds {' and '.join(folders)}: keep one of these folders for {name}")
        if folders:
            found[name] = root / folders[0]
    return found


def _no_images(folder: Path, split: str, listing: Listing) -> Exception:
    if split in listing.in_training:
        return ValueError(
            f"every image of {folder} is one of the training images, because of links: remove {folder}, or put other "
            "images there"
        )
    notes = [f"; {line}" for line in listing.notes()]
    return FileNotFoundError(f"{folder} holds no images{''.join(notes)}: add images, such as .jpg or .png files")
