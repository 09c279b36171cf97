"""What ``RepresentationProbe`` may compute: a share of the computing of the training."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from recipes.callbacks.reporting.references import PIXELS, RANDOM
from recipes.evaluation.budget import FREE, Plan, Task, affordable, forward_operations, training_operations
from recipes.evaluation.representation import PIXEL_SIDE

_WHILE_TRAINING, _AT_THE_END = 0.4, 0.4  # of what may be spent; the rest is for pictures


class ProbeBudget:
    """Plans the measurements of a run so that they take no more than a share of the computing of its training.

    Args:
        full: the protocol without a limit.
        max_share: see ``RepresentationProbe``.
        every_n_epochs: see ``RepresentationProbe``.
    """

    def __init__(self, full: Plan, max_share: float | None, every_n_epochs: int) -> None:
        self.full = full
        self.max_share = max_share
        self.every_n_epochs = every_n_epochs
        self._rows = full.rows  # of the table without a limit: an encoder that has not changed has no reference
        self._images = 0  # of the whole training, 0 if unknown
        self._validations = 1
        self._forward = 0.0  # operations of the encoder for an image

    def start(self, trainer: Trainer) -> bool:
        """Reads how long the training will be, and how often it is measured; returns whether that is known."""
        self._images, self._validations = _whole_training(trainer, self.every_n_epochs)
        return self._images > 0

    def of_validation(self, trainer: Trainer, recipe: LightningModule) -> Plan:
        """Plans a measurement while training."""
        task = self._task(trainer, recipe, "val", ())
        budget = self._operations(self._images, _WHILE_TRAINING) / self._validations
        return affordable(task, budget, self.full.draws, ())

    def of_test(self, trainer: Trainer, recipe: LightningModule, references: Iterable[str], images: int) -> Plan:
        """Plans the measurement at the end.

        Args:
            trainer: with a DataModule.
            recipe: whose encoder is measured.
            references: names of the other rows of the table.
            images: that the whole training of this process has seen; with 0, there is no limit.
        """
        names = tuple(references)
        self._rows = 1 + len(names)
        task = self._task(trainer, recipe, "test", names)
        return affordable(task, self._operations(images, _AT_THE_END), self.full.draws, self.full.few_labels)

    def of_pictures(self, images: int) -> float:
        """Operations that the pictures may take, after a training that has seen so many images."""
        return self._operations(images, 1 - _WHILE_TRAINING - _AT_THE_END)

    def announcement(self, trainer: Trainer, recipe: LightningModule) -> str:
        """What is measured, and its share of the computing of a training of known length."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        plans = {"while training": self.of_validation(trainer, recipe)} if data.splits.val is not None else {}
        if data.splits.test is not None:
            references = (RANDOM, PIXELS)[: self.full.rows - 1]
            plans["at the end"] = self.of_test(trainer, recipe, references, self._images)
        runs = {"while training": self._validations, "at the end": 1}
        total = sum(plan.cost * runs[when] for when, plan in plans.items())
        share = total / max(training_operations(self._images, self._forward), 1.0)
        left = [
            f"{when}: {words}"
            for when, plan in plans.items()
            if (words := self._left_out(plan) if when == "at the end" else _left_out_of_bank(plan))
        ]
        reduced = f" To keep it small, {'; '.join(left)} (--probe.max_share null measures everything)." if left else ""
        if total <= FREE:
            return f"Evaluation takes a few seconds.{reduced}"
        return f"Evaluation takes about {100 * share:.0f} % of the computing of the training.{reduced}"

    def protocol(self, plan: Plan) -> dict[str, Any]:
        """What the protocol of a test states of parts that are left out."""
        words = self._left_out(plan)
        return {"max_share": self.max_share, "reduced": words} if words else {}

    def _left_out(self, plan: Plan) -> str:
        """What the plan of a test leaves out of the full protocol, in words; "" if nothing."""
        words, rows = [], self._rows
        if not plan.few_labels and self.full.few_labels:
            words.append("no columns with few labels")
        elif plan.draws < self.full.draws:
            words.append(f"{plan.draws} draws of few labels instead of {self.full.draws}")
        if plan.rows < rows:
            words.append("no raw pixels" if plan.rows == rows - 1 else "no references")
        return ", ".join(filter(None, [*words, _left_out_of_bank(plan)]))

    def _operations(self, images: int, share: float) -> float:
        """Operations that a part of the evaluation may take, ``share`` of what all parts may take together."""
        if self.max_share is None or not images:
            return math.inf
        return max(FREE, self.max_share * training_operations(images, self._forward)) * share

    def _task(self, trainer: Trainer, recipe: LightningModule, split: str, references: Sequence[str]) -> Task:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not self._forward:
            encoder: Any = recipe.encoder
            self._forward = forward_operations(encoder, data.image_shape)
        bank = int((data.splits.train.label >= 0).sum())
        images = getattr(data.splits, split)
        channels, *sides = data.image_shape
        pixels = channels * math.prod(min(side, PIXEL_SIDE) for side in sides)
        width: Any = recipe.feature_dim
        widths = (width, *(pixels if name == PIXELS else width for name in references))
        passes = 1 + sum(name != PIXELS for name in references)
        return Task(bank, 0 if images is None else len(images), data.num_classes, self._forward, widths, passes)


def _left_out_of_bank(plan: Plan) -> str:
    return f"one of every {plan.every} images of the bank" if plan.every > 1 else ""


def _whole_training(trainer: Trainer, every_n_epochs: int) -> tuple[int, int]:
    """How many images the whole training sees, and how often it is validated and measured; 0 images if unknown."""
    data: Any = getattr(trainer, "datamodule", None)
    steps = trainer.estimated_stepping_batches
    batches: Any = trainer.num_training_batches
    if not hasattr(data, "batch_size") or not math.isfinite(steps) or not math.isfinite(batches):
        return 0, 1
    images = int(steps) * trainer.accumulate_grad_batches * data.batch_size
    epochs = max(1, math.ceil(int(steps) * trainer.accumulate_grad_batches / max(batches, 1)))
    validated = trainer.check_val_every_n_epoch or 1
    measured = sum(
        epoch % validated == 0 and (epoch % max(every_n_epochs, 1) == 0 or epoch == epochs)
        for epoch in range(1, epochs + 1)
    )
    interval: Any = trainer.val_check_batch
    within = max(1, round(batches / interval)) if interval and math.isfinite(interval) else 1
    return images, max(1, measured * within)
