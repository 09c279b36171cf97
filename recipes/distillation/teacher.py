"""Trained networks whose predictions other networks are trained to match."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models

from recipes.augment.base import to_float
from recipes.base.checkpoint import checkpoint_path, load, restored
from recipes.base.classifier import Classifier
from recipes.base.recipe import Recipe
from recipes.nn import Encoder, TorchvisionEncoder
from recipes.nn.encoders.torchvision import source_head

TORCHVISION = "torchvision:"


class Teacher(nn.Module):
    """One or several trained classifiers, frozen: always in eval mode, also after ``train()``, and without gradient.

    The logits of several are averaged, so that their probabilities are the geometric mean, normalised, at every
    temperature (Hinton et al., 2015, arXiv:1503.02531, Section 1: "the arithmetic or geometric mean").

    Args:
        members: trained recipes that classify images, all with the same number of classes.
        sources: source of each member, for messages and checkpoints.

    Attributes:
        num_classes: how many classes the teacher tells apart; None where it has features alone.
        class_names: of the classes, where they are known.
        digest: SHA-256 of all weights and buffers.
        scales: for each member, the size of its images over the size of those that it is given, see ``fit_to``.

    Raises:
        ValueError: if the members have different classes, or one gives no probabilities.
    """

    def __init__(self, members: list[Recipe], sources: list[str]) -> None:
        super().__init__()
        for member, source in zip(members, sources, strict=True):
            if not getattr(member, "has_probabilities", True):
                raise ValueError(
                    f"the recipe of the teacher {source} is {type(member).__name__}, which gives no probabilities: "
                    "choose a run of another recipe"
                )
        counts = [_num_classes(member) for member in members]
        if len(set(counts)) != 1:
            each = ", ".join(f"{source} {count or 'none'}" for source, count in zip(sources, counts, strict=True))
            raise ValueError(
                f"the teachers have different numbers of classes ({each}): give teachers of the same classes, or one"
            )
        self.num_classes = counts[0]
        named = [names for member in members if (names := getattr(member, "class_names", ()))]
        if len(set(named)) > 1:
            raise ValueError(
                f"the teachers {', '.join(sources)} have different classes: give teachers of the same classes, or one"
            )
        self.class_names: tuple[str, ...] = named[0] if named else ()
        self.members = nn.ModuleList(members).requires_grad_(False)
        for member in members:
            member.checks_images = False  # those of a run are checked once
        self.sources = sources
        self.scales = [1.0] * len(members)
        self.to(memory_format=torch.channels_last)
        self.digest = digest(self)
        self.train()

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode: running statistics do not move, and dropout does nothing."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Maps images [B, C, H, W], uint8 or float in [0, 1], to logits [B, classes]; each member normalises them."""
        logits = [member.classify(self.resized(image, i)) for i, member in enumerate(self.members)]  # type: ignore[operator]
        return logits[0] if len(logits) == 1 else torch.stack(logits).mean(0)

    def fit_to(self, image_size: int | None) -> None:
        """Has each member see images at the size that it was trained on, where that is known.

        Args:
            image_size: height and width of the images of the data, from which views may be cropped.
        """
        members: Any = self.members
        own: list[int | None] = [member.reading.image_size for member in members]
        self.scales = [size / image_size if size and image_size else 1.0 for size in own]
        for source, size, scale in zip(self.sources, own, self.scales, strict=True):
            if scale != 1:
                rank_zero_info(
                    f"the teacher {source} was trained on images of {size}×{size} pixels, and the data has "
                    f"{image_size}×{image_size}: images are resized for the teacher"
                )

    def resized(self, image: Tensor, member: int = 0) -> Tensor:
        """Resizes images [B, C, H, W] for a member: bilinear, antialiased."""
        scale = self.scales[member]
        if scale == 1:
            return image
        size = [max(1, round(scale * side)) for side in image.shape[2:]]
        return functional.interpolate(to_float(image), size=size, mode="bilinear", antialias=True).clamp(0, 1)

    @property
    def member(self) -> Recipe:
        """The only member, whose layers can be named.

        Raises:
            ValueError: if there are several members.
        """
        if len(self.members) > 1:
            raise ValueError(f"layers of {len(self.members)} teachers cannot be averaged: give one teacher")
        return self.members[0]  # type: ignore[return-value]

    @property
    def encoder(self) -> Encoder:
        """That of the only member."""
        return self.member.encoder

    def packed(self) -> list[dict[str, Any]]:
        """Returns the teacher as tensors and plain values for a checkpoint; ``unpacked`` reverses it.

        Raises:
            ValueError: if a member was created in Python and has no configuration.
        """
        if unknown := [s for member, s in zip(self.members, self.sources, strict=True) if not member.made_from]:
            raise ValueError(
                f"keep_teacher cannot save {unknown[0]}, which was created in Python and has no configuration: train "
                "it with recipes fit, or set keep_teacher to false"
            )
        return [
            {"source": source, "made_from": member.made_from, "state_dict": member.state_dict()}
            for member, source in zip(self.members, self.sources, strict=True)
        ]


def unpacked(packed: list[dict[str, Any]]) -> Teacher:
    """Restores the teacher that ``Teacher.packed`` put into a checkpoint."""
    members, sources = [], []
    for part in packed:
        source, made_from = part["source"], part["made_from"]
        member: Recipe
        if "torchvision" in made_from:
            encoder = TorchvisionEncoder(made_from["torchvision"])
            member = Classifier(encoder, made_from["num_classes"], torch.optim.SGD)
            member.load_state_dict(part["state_dict"])
        else:
            member = restored({**made_from, "state_dict": part["state_dict"]}, source)
        member.made_from = made_from
        members.append(member)
        sources.append(source)
    return Teacher(members, sources)


def teacher_from(names: str | list[str]) -> Teacher:
    """Loads trained networks; the state of the random number generators does not change.

    Args:
        names: of one teacher or several. Each is the directory of a run, or of runs of which the newest is taken; a
            checkpoint; or ``torchvision:<network>`` with its default weights, or those that a third part names
            (``torchvision:resnet34:IMAGENET1K_V1``), which may be a file of torchvision's network, made for images
            that are normalised as torchvision's are.

    Raises:
        FileNotFoundError: if there is no such run or file.
        ValueError: if a teacher has no classification head, or its classes differ from those of the other teachers.
    """
    names = [names] if isinstance(names, str) else names
    if not names:
        raise ValueError("teacher is an empty list: give at least one run, checkpoint or torchvision:<network>")
    with torch.random.fork_rng(devices=[]):
        found = [_torchvision(name) if name.startswith(TORCHVISION) else _run(name) for name in names]
    return Teacher([member for member, _ in found], [source for _, source in found])


def digest(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers of a module, with their names, types and shapes."""
    whole = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        whole.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        whole.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _run(name: str) -> tuple[Recipe, str]:
    try:
        path = checkpoint_path(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"there is no teacher at {name}: train one, such as with a config teacher-* of 'recipes list', and give "
            "its run directory or checkpoint as --model.teacher, or torchvision:<network>"
        ) from error
    return load(path), str(path)


def _torchvision(name: str) -> tuple[Recipe, str]:
    network, _, weights = name.removeprefix(TORCHVISION).partition(":")
    weights = weights or "DEFAULT"
    encoder = TorchvisionEncoder(network, weights=weights)
    head = source_head(network, weights)
    if head is None:
        raise ValueError(f"{name} has no linear layer on top that gives logits: choose another network or weights")
    member = Classifier(encoder, head.out_features, torch.optim.SGD)
    member.head = head
    usual = models.get_model_weights(network).DEFAULT.transforms()  # a file does not say by what, and torchvision's are
    member.normalize.set(*(encoder.normalization or (tuple(usual.mean), tuple(usual.std))))
    member.made_from = {"torchvision": network, "num_classes": head.out_features}
    return member, f"{TORCHVISION}{network}:{Path(weights) if '/' in weights else weights}"


def _num_classes(member: Recipe) -> int | None:
    return member.head.out_features if hasattr(member, "classify") else None  # type: ignore[union-attr,return-value]
