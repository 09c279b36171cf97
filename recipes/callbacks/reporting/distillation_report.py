"""Reports how far a student agrees with its teacher, and the calibration of both."""

import json
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from recipes.callbacks.reporting.files import images_of, picture_directory, save
from recipes.callbacks.running.feature_collector import FeatureCollector
from recipes.evaluation.calibration import NETWORKS, Predictions, best_temperature, comparison, entropy
from recipes.evaluation.features import Features, extract
from recipes.plots.distillation import agreement, calibration, softened, spread


class DistillationReport(Callback):
    """Compares student and teacher at the end of the test; does nothing for a recipe without a loaded teacher.

    ``distillation.json`` in the run directory has the agreement (the share of test images for which both predict the
    same class), the accuracy and the expected calibration error (15 bins) of both networks, and the teacher's mean
    entropy in bits at the temperatures 1, 4, 20 and 40. If there are validation images, the file also has each
    network's best temperature on them, and the calibration error on the test images with logits divided by this
    temperature (temperature scaling, Guo et al., 2017, arXiv:1706.04599).

    The pictures, which are also logged to Weights & Biases if a ``WandbLogger`` is used:

    * ``pictures/temperature.png``: the teacher's probabilities at the four temperatures, for some test images;
    * ``pictures/agreement.png``: the joint counts of the teacher's and the student's predicted classes;
    * ``pictures/calibration.png``: the accuracy of both networks by confidence.

    Test images without a label are skipped. Nothing is written under ``fast_dev_run``.
    """

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Requests the logits of both networks."""
        if _has_teacher(pl_module):
            FeatureCollector.of(trainer).collect("teacher_logits")
            FeatureCollector.of(trainer).collect("logits")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the logits of the validation images with both networks, and writes the report."""
        if not _has_teacher(pl_module):
            return
        collected = FeatureCollector.of(trainer)
        test, val = _predictions(*(collected.gather()[name] for name in ("teacher_logits", "logits"))), None
        data: Any = getattr(trainer, "datamodule", None)
        if data is not None and hasattr(data, "splits") and data.splits.val is not None:
            both = extract({"both": _Both(pl_module)}, data.in_order(data.splits.val), trainer)["both"]
            val = _predictions(*(both._replace(feature=part) for part in both.feature.tensor_split(2, dim=1)))
        pictures = picture_directory(trainer)
        if pictures is None or test is None:
            return
        recipe: Any = pl_module
        names = recipe.class_names or [str(number) for number in range(test.teacher.shape[1])]
        temperatures = {name: best_temperature(getattr(val, name), val.label) for name in NETWORKS} if val else {}
        pictures.mkdir(parents=True, exist_ok=True)
        report = comparison(test, temperatures, 0 if val is None else len(val.label))
        if collected.subset:
            report["subset"] = collected.subset
        (pictures.parent / "distillation.json").write_text(json.dumps(report, indent=2) + "\n")
        save(agreement(test, names), pictures / "agreement.png", trainer)
        save(calibration(test, temperatures), pictures / "calibration.png", trainer)
        images = images_of(trainer.test_dataloaders)
        if images is not None:
            rows = spread(entropy(test.teacher))
            figure = softened(images(test.index[rows]), test.teacher[rows], test.label[rows], names, len(test.label))
            save(figure, pictures / "temperature.png", trainer)


class _Both(nn.Module):
    """Maps images to the logits of teacher and student, side by side: [B, 2 × classes]."""

    def __init__(self, recipe: Any) -> None:
        super().__init__()
        self.recipe = recipe

    def forward(self, image: Tensor) -> Tensor:
        teacher, student = self.recipe.teacher_logits(image), self.recipe.classify(image)
        return torch.cat([teacher.float(), student.float()], 1)


def _has_teacher(recipe: LightningModule) -> bool:
    return bool(getattr(recipe, "has_teacher", False))


def _predictions(teacher: Features, student: Features) -> Predictions | None:
    """Keeps the labelled images, on the CPU; None if there are none."""
    teacher, student = (each.labelled().to("cpu") for each in (teacher, student))
    if not len(teacher.label):
        return None
    return Predictions(teacher.feature.double(), student.feature.double(), teacher.label, teacher.index)
