"""Some classes, or some images of each: any DataModule made smaller."""

from collections.abc import Sequence

import torch

from datamodules.base import ImageDataModule, Splits, is_labelled
from datamodules.loading.dataset import ImageDataset, ImageSelection
from datamodules.loading.split import per_class


class Subset(ImageDataModule):
    """Selects classes, or a few training images per class, of another DataModule.

    Which images stay is always the same, whatever the seed of the run; those of a smaller ``per_class`` are among those
    of a larger one. Validation and test keep all images of the classes. Images without a label are left
    out, and so is a split without any label.

    Args:
        base: source of the images. Its own batch_size and num_workers are not used.
        classes: names of the classes to keep, in the order of their new labels 0, 1, .... If null, keeps all.
        per_class: largest number of training images of each class, >= 1. If null, keeps all.
        leave_out: names of classes without training images. They keep their labels, and all validation and test images.
        Other arguments: see ``ImageDataModule``.

    Raises:
        ValueError: if ``per_class`` is not positive, a class is named twice or is not there, or a split has none of the
            classes.
    """

    def __init__(
        self,
        base: ImageDataModule,
        classes: Sequence[str] | None = None,
        per_class: int | None = None,
        leave_out: Sequence[str] = (),
        batch_size: int = 256,
        num_workers: int | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers)
        if per_class is not None and per_class < 1:
            raise ValueError(f"per_class is {per_class}: it must be at least 1, or none to keep all images")
        if classes is not None and (not classes or len(set(classes)) < len(classes)):
            raise ValueError(f"classes are {list(classes)}: give each class once, or none to keep all")
        self.base = base
        self.sources = (base,)
        self.classes = None if classes is None else tuple(classes)
        self.per_class = per_class
        self.leave_out = tuple(leave_out)

    @property
    def num_classes(self) -> int:
        """How many classes stay."""
        return self.base.num_classes if self.classes is None else len(self.classes)

    def prepare_data(self) -> None:
        """Downloads or prepares what ``base`` needs."""
        self._ask_network()
        with self._reading_sources():
            self.base.prepare_data()

    def load(self) -> Splits:
        """Reads the images of ``base``, and leaves out those of other classes."""
        self.base.setup()
        splits = self.base.splits
        names = splits.class_names if self.classes is None else self.classes
        if unknown := [name for name in names if name not in splits.class_names]:
            raise ValueError(
                f"{type(self.base).__name__} has no class {unknown[0]!r}; it has {', '.join(splits.class_names)}"
            )
        if unknown := [name for name in self.leave_out if name not in names]:
            raise ValueError(f"leave_out names {unknown[0]!r}; the classes are {', '.join(names)}")
        new = torch.full((len(splits.class_names) + 1,), -1)  # the last stands for unlabelled images
        new[[splits.class_names.index(name) for name in names]] = torch.arange(len(names))

        def selected(images: ImageDataset, most: int | None = None, without: Sequence[str] = ()) -> ImageDataset:
            label = new[images.label]
            left_out = torch.tensor([names.index(name) for name in without], dtype=torch.int64)
            rows = ((label >= 0) & ~torch.isin(label, left_out)).nonzero().flatten()
            if not len(rows):
                raise ValueError(f"{type(self.base).__name__} has no images of {', '.join(names)} in one of its splits")
            if most is not None:
                rows = rows[per_class(label[rows], torch.full((len(names),), most))]
            return ImageSelection(images, rows, label[rows])

        val, test = (selected(part) if is_labelled(part) else None for part in (splits.val, splits.test))
        return Splits(names, selected(splits.train, self.per_class, self.leave_out), val, test)
