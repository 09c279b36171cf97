"""The file ``evaluation.json`` of a run."""

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from recipes.evaluation.representation import Accuracies, summary
from recipes.evaluation.tables import versions


def write(
    path: Path, trainer: Trainer, recipe: LightningModule, protocol: dict[str, Any], accuracies: Accuracies
) -> None:
    """Writes the accuracies of a test on the first device, with what they are of.

    Args:
        path: path of the file.
        trainer: Trainer of the test.
        recipe: whose encoder was measured.
        protocol: how, beside what is the same for all.
        accuracies: by row and column.
    """
    report = {
        "recipe": type(recipe).__name__,
        "encoder": type(recipe.encoder).__name__,
        "data": type(trainer.datamodule).__name__,  # type: ignore[attr-defined]
        "protocol": {
            "split": "test",
            "model": "the weights given to the test, encoder in eval mode, test transforms",
            **protocol,
            "precision": str(trainer.precision),
            "devices": trainer.world_size,
        },
        "accuracy": summary(accuracies),
        "versions": versions(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
