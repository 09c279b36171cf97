"""Finds the images below folders: every real file once, whatever links lead to it."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from datamodules.sources.formats import extensions, install_hint

_HIDDEN = (".", "__MACOSX")
_NO_CLASS = ""

_Identity = str | tuple[int, int]  # the resolved path; device and inode, if the file has several names


class ImageFile(NamedTuple):
    """An image file.

    Attributes:
        path: path of the file, below the folder that was listed.
        class_name: name of its class folder; "" without one.
        size: in bytes.
        identity: equal for two paths of the same file.
    """

    path: str
    class_name: str
    size: int
    identity: _Identity


@dataclass
class Listing:
    """The images below some folders, and what else was found there.

    Attributes:
        files: for each split its images, class after class, each sorted by name.
        classes: for each split the names of its class folders, sorted; [""] if it has none.
        other_files: number of files that are no images, by extension.
        special_files: number of FIFOs, sockets and devices.
        broken: links with the name of an image that lead nowhere.
        repeated: number of links, and further names, of files and folders that are there already.
        conflicts: pairs of paths that lead to the same file in two classes; the first is used.
        in_training: images of other splits that are left out because they are training images too.
        mixed: why it is not known which images have a class, if there are class folders and images side by side; all
            images of that split are then without a class.
    """

    files: dict[str, list[ImageFile]] = field(default_factory=dict)
    classes: dict[str, list[str]] = field(default_factory=dict)
    other_files: Counter[str] = field(default_factory=Counter)
    special_files: int = 0
    broken: list[Path] = field(default_factory=list)
    repeated: int = 0
    conflicts: list[tuple[str, str]] = field(default_factory=list)
    in_training: dict[str, list[str]] = field(default_factory=dict)
    mixed: str | None = None

    def notes(self) -> list[str]:
        """One line for each kind of thing that was left out."""
        lines = []
        if self.other_files or self.special_files:
            counts = [f"{n} {ext}{install_hint(ext)}" for ext, n in self.other_files.most_common()]
            counts += [f"{self.special_files} special (FIFO, socket or device)"] * bool(self.special_files)
            total = self.other_files.total() + self.special_files
            lines.append(f"{_files(total)} left out that cannot be read as images here: {', '.join(counts)}")
        if self.repeated:
            links = "1 link leads" if self.repeated == 1 else f"{self.repeated:,} links lead"
            line = f"{links} to images that are read once"
            if self.conflicts:
                kept, left = self.conflicts[0]
                line += f"; {len(self.conflicts)} of them in two classes, such as {left}, which counts as {kept}"
            lines.append(line)
        for split, paths in self.in_training.items():
            images = f"1 {split} image is" if len(paths) == 1 else f"{len(paths):,} {split} images are"
            lines.append(f"{images} left out, because links make training images of them, such as {paths[0]}")
        return lines


def class_folders(folder: Path) -> list[str]:
    """The names of the class folders of a folder, sorted, without listing what they hold.

    A linked class folder without images of its own is no class.
    """
    entries, real = _visible(str(folder)), os.path.realpath(folder)
    folders = [entry for entry in entries if entry.is_dir() and not _leads_up(entry, real)]
    if any(entry.is_symlink() for entry in folders):
        return [name for name in list_images({"all": folder}).classes["all"] if name != _NO_CLASS]
    return [entry.name for entry in folders]


def list_images(folders: Mapping[str, Path]) -> Listing:
    """Lists the images of each split.

    Files that are reached without links come first, so that a link never decides to which class or split an image
    belongs. No image of ``train`` is in another split.

    Args:
        folders: folders of the splits; ``train`` first, if it is there.
    """
    walk = _Walk()
    for split, folder in folders.items():
        walk.enter(split, folder)
    for split in folders:
        walk.follow_links(split)
    return walk.listing


def list_paths(paths: Sequence[str], split: str) -> Listing:
    """Lists files, and all images in folders, without classes.

    Args:
        paths: files and folders.
        split: split of the images.
    """
    walk = _Walk()
    walk.add_paths(split, paths)
    walk.follow_links(split)
    return walk.listing


@dataclass(frozen=True)
class _Link:
    path: str
    real_folder: str  # that holds it
    class_name: str
    is_class: bool


class _Walk:
    """Collects the images of all splits: first those reached without links, then those that links lead to."""

    def __init__(self) -> None:
        self.listing = Listing()
        self.extensions = extensions()
        # by split
        self.seen: dict[str, dict[_Identity, ImageFile]] = {}
        self.entered: dict[str, set[str]] = {}  # resolved folders
        self.links: dict[str, list[_Link]] = {}

    def enter(self, split: str, folder: Path) -> None:
        """Lists a split without following links."""
        real = os.path.realpath(folder)
        self.seen[split], self.entered[split], self.links[split] = {}, set(), []
        entries = _visible(str(folder))
        classes = [entry.name for entry in entries if entry.is_dir() and not _leads_up(entry, real)]
        images = [entry.name for entry in entries if self._is_image(entry.name) and not entry.is_dir()]
        if classes and images:
            ext = os.path.splitext(images[0])[1]
            self.listing.mixed = self.listing.mixed or (
                f"{folder} holds folders ({classes[0]}) and images ({images[0]}) side by side: "
                "put every image into the folder of its class. To train without labels, set root to a pattern: "
                f"'{folder}/**/*{ext}' for all such images, or '{folder}/*{ext}' for those beside the folders"
            )
            classes = []
        self.listing.files[split] = []
        self.listing.classes[split] = classes or [_NO_CLASS]
        for entry in entries:
            is_class = entry.name in classes
            self._enter(split, entry, real, entry.name if is_class else _NO_CLASS, is_class)

    def add_paths(self, split: str, paths: Sequence[str]) -> None:
        """Lists files and folders without following links in the folders."""
        self.seen[split], self.entered[split], self.links[split] = {}, set(), []
        self.listing.files[split], self.listing.classes[split] = [], [_NO_CLASS]
        for path in paths:
            real = os.path.realpath(path)
            if os.path.isdir(path):
                self._enter_folder(split, path, real, _NO_CLASS)
            elif os.path.exists(path):
                self._add(split, path, real, _NO_CLASS, os.path.isfile(path))
            elif self._is_image(path):
                self.listing.broken.append(Path(path))

    def follow_links(self, split: str) -> None:
        """Adds what the links in a split lead to."""
        listing, files = self.listing, self.listing.files[split]
        before = len(files)
        for link in self.links[split]:  # grows while links are followed
            self._follow(split, link)
        if len(files) > before:
            files.sort(key=lambda file: (file.class_name, file.path.split(os.sep)))
        empty = {link.class_name for link in self.links[split] if link.is_class} - {file.class_name for file in files}
        listing.classes[split] = [name for name in listing.classes[split] if name not in empty]

    def _enter(
        self, split: str, entry: "os.DirEntry[str]", real_folder: str, class_name: str, is_class: bool = False
    ) -> None:
        real = f"{real_folder}/{entry.name}"
        if entry.is_symlink():
            self.links[split].append(_Link(entry.path, real_folder, class_name, is_class))
        elif entry.is_dir():
            self._enter_folder(split, entry.path, real, class_name)
        else:
            self._add(split, entry.path, real, class_name, entry.is_file())

    def _enter_folder(self, split: str, folder: str, real: str, class_name: str) -> None:
        if real not in self.entered[split]:
            self.entered[split].add(real)
            for entry in _visible(folder):
                self._enter(split, entry, real, class_name)

    def _follow(self, split: str, link: _Link) -> None:
        listing, real = self.listing, os.path.realpath(link.path)
        if not os.path.exists(link.path):
            if self._is_image(link.path):
                listing.broken.append(Path(link.path))
            else:
                listing.other_files["broken link"] += 1
        elif not os.path.isdir(link.path):
            self._add(split, link.path, real, link.class_name, os.path.isfile(link.path))
        elif real in self.entered[split] or _contains(real, link.real_folder):
            listing.repeated += 1
        else:
            self._enter_folder(split, link.path, real, link.class_name)

    def _add(self, split: str, path: str, real: str, class_name: str, is_file: bool) -> None:
        listing = self.listing
        if not is_file:
            listing.special_files += 1
        elif not self._is_image(path):
            listing.other_files[os.path.splitext(path)[1].lower() or "without extension"] += 1
        else:
            stat = os.stat(path)
            file = ImageFile(path, class_name, stat.st_size, (stat.st_dev, stat.st_ino) if stat.st_nlink > 1 else real)
            if self._is_new(split, file):
                self.seen[split][file.identity] = file
                listing.files[split].append(file)

    def _is_new(self, split: str, file: ImageFile) -> bool:
        """Whether no other path to the file counts; notes it otherwise."""
        listing, seen = self.listing, self.seen
        if known := seen[split].get(file.identity):
            listing.repeated += 1
            if known.class_name != file.class_name:
                listing.conflicts.append((known.path, file.path))
            return False
        if split != "train" and file.identity in seen.get("train", ()):
            listing.in_training.setdefault(split, []).append(file.path)
            return False
        if split == "train" and any(file.identity in others for others in seen.values()):
            listing.repeated += 1  # a link to an image of another split, which stays there
            return False
        return True

    def _is_image(self, name: str) -> bool:
        return os.path.splitext(name)[1].lower() in self.extensions


def _visible(folder: str) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(_HIDDEN)), key=lambda entry: entry.name)


def _leads_up(entry: "os.DirEntry[str]", real_folder: str) -> bool:
    return entry.is_symlink() and _contains(os.path.realpath(entry.path), real_folder)


def _contains(folder: str, other: str) -> bool:
    """Whether a resolved folder is another one or one of its parents."""
    return other == folder or other.startswith(folder.rstrip(os.sep) + os.sep)


def _files(count: int) -> str:
    return f"{count:,} file{' is' if count == 1 else 's are'}"
