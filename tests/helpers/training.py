"""Trainers for tests, and a callback that ends a run as a crash would."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer


def quiet_trainer(devices: int = 1, **options: Any) -> Trainer:
    """Makes a Trainer on the CPU that prints nothing and writes nothing.

    Args:
        devices: processes; several are joined by DDP and have to be started by ``tests.helpers.processes.run``.
        options: of the Trainer, which beat these defaults.
    """
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": devices,
            "strategy": "ddp" if devices > 1 else "auto",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )


class SaveAndDie(Callback):
    """Saves a checkpoint and raises an error.

    Args:
        path: of the checkpoint.
        hook: "batch start", "batch end", "epoch end" or "validation end".
        step: optimiser steps done by then.
    """

    def __init__(self, path: Path, hook: str, step: int) -> None:
        self.path, self.hook, self.step = path, hook, step

    def _at(self, hook: str, trainer: Trainer) -> None:
        if hook == self.hook and trainer.global_step == self.step and not trainer.sanity_checking:
            trainer.save_checkpoint(self.path)
            raise RuntimeError("killed")

    def on_train_batch_start(self, trainer, *_):
        self._at("batch start", trainer)

    def on_train_batch_end(self, trainer, *_):
        self._at("batch end", trainer)

    def on_train_epoch_end(self, trainer, *_):
        self._at("epoch end", trainer)

    def on_validation_end(self, trainer, *_):
        self._at("validation end", trainer)


def fit_until_killed(trainer: Trainer, *args: Any, **options: Any) -> None:
    """Fits until the end, or until something raises ``RuntimeError("killed")``."""
    try:
        trainer.fit(*args, **options)
    except RuntimeError as error:
        if "killed" not in str(error):
            raise
