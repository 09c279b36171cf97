from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger


class RunDirectory(Callback):
    """Saves the configuration of a run to its directory, its checkpoints and, if used, Weights & Biases.

    Args:
        directory: run directory.
        config: whole configuration, as YAML.
        model: configuration of the recipe, with the values that come from the DataModule, as YAML.
    """

    def __init__(self, directory: Path, config: str, model: str) -> None:
        self.directory = directory
        self.config = config
        self.model = model

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the configuration into the checkpoint, so that it can be tested, resumed and loaded by itself."""
        checkpoint["config"] = self.config
        checkpoint["model"] = self.model
        checkpoint["wandb_ids"] = [each.version for each in trainer.loggers if isinstance(each, WandbLogger)]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes config.yaml, once it is known that the run can start."""
        path = self.directory / "config.yaml"
        if not trainer.is_global_zero or path.exists():
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        path.write_text(self.config)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.experiment.config.update(yaml.safe_load(self.config), allow_val_change=True)

    on_validation_start = on_test_start = on_predict_start = on_fit_start
