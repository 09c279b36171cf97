"""Losses between named layers of a student and of its teacher."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from datamodules import Batch
from losses import FeatureLoss
from recipes.augment import Key
from recipes.distillation.layers import FEATURE, LOGITS, module_path, shapes
from recipes.nn import Encoder

Outputs = Mapping[str, Tensor]


@dataclass
class LayerLoss:
    """A loss between a layer of the student and one of the teacher.

    A layer is the path of a module of the encoder (``layer3``, ``network.layer3``), the last of a stage with weights
    (``stage:2``, see ``recipes.nn.stages``), the encoder's ``feature``, or the ``logits``.

    Args:
        loss: loss that compares the two layers.
        weight: weight of the loss, > 0.
        student_layer: name of the student's layer.
        teacher_layer: name of the teacher's layer. If null, uses the name of the student's layer.
    """

    loss: FeatureLoss
    weight: float = 1.0
    student_layer: str = FEATURE
    teacher_layer: str | None = None


class LayerLosses(nn.Module):
    """All losses between layers of a student and of its teacher.

    Args:
        given: losses with their layers and weights.
        encoder: encoder of the student.

    Attributes:
        student_layers: what each loss reads of the student, by name.
        teacher_layers: the same of the teacher.

    Raises:
        ValueError: if a weight is not positive, or the student has no such layer.
    """

    def __init__(self, given: Sequence[LayerLoss], encoder: Encoder) -> None:
        super().__init__()
        for one in given:
            if not 0 < one.weight < math.inf:
                raise ValueError(f"the weight of {type(one.loss).__name__} is {one.weight}: it must be positive")
            if one.student_layer not in (FEATURE, LOGITS):
                module_path(encoder, one.student_layer)
        self.losses = nn.ModuleList(one.loss for one in given)
        self.weights = [one.weight for one in given]
        self.student_layers = [one.student_layer for one in given]
        self.teacher_layers = [one.teacher_layer or one.student_layer for one in given]
        self.names = [
            f"{type(one.loss).__name__}:{'-'.join(dict.fromkeys(layers))}"
            for one, layers in zip(given, zip(self.student_layers, self.teacher_layers, strict=True), strict=True)
        ]

    def __len__(self) -> int:
        return len(self.losses)

    def build(
        self,
        student: Encoder,
        teacher: Encoder,
        classes: tuple[int, int | None],
        shape: tuple[tuple[int, ...], tuple[int, ...]],
        images: int,
    ) -> None:
        """Makes the parameters of the losses, unless they are made: a function of the run's seed.

        Args:
            student: the student's encoder.
            teacher: the teacher's.
            classes: of the logits of both; None where the teacher has none.
            shape: channels, height and width of an image, as the student and as the teacher get it.
            images: how many training images there are.

        Raises:
            ValueError: if the teacher has no such layer, or two layers do not fit together.
        """
        ours = shapes(student, self.student_layers, shape[0], classes[0])
        theirs = shapes(teacher, self.teacher_layers, shape[1], classes[1])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(os.environ.get("PL_GLOBAL_SEED", 0)))  # whatever was drawn on the way to here
            for loss, one, other in self._pairs():
                if not loss.state_dict():
                    loss.build(ours[one], theirs[other], images)

    def forward(
        self, student: Outputs, teacher: Outputs, batch: Batch, gather: Callable[[Tensor], Tensor], key: Key
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Computes all losses.

        Args:
            student: outputs of the student's layers for a batch, by name.
            teacher: the same of the teacher.
            batch: of the images, with their labels and indices.
            gather: joins tensors of all devices (``Recipe.gather``).
            key: of the batch; each loss has random numbers of its own.

        Returns:
            The weighted sum, and each loss by its name, without its weight.
        """
        total, values = student[LOGITS].new_zeros(()), {}
        for number, (loss, one, other) in enumerate(self._pairs()):
            pair, index, label = (student[one], teacher[other]), batch.index, batch.label
            if loss.compares_images:
                pair, index, label = (gather(pair[0]), gather(pair[1])), gather(index), gather(label)
            known = {"index": index, "label": label, "key": key.fold_in(number)._replace(index=index)}
            values[self.names[number]] = value = loss(*pair, **{name: known[name] for name in loss.needs})
            total = total + self.weights[number] * value
        return total, values

    def after_backward(self) -> None:
        """Lets the losses move what they remember."""
        for loss, _, _ in self._pairs():
            loss.after_backward()

    def _pairs(self) -> list[tuple[Any, str, str]]:
        return list(zip(self.losses, self.student_layers, self.teacher_layers, strict=True))
