import json
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from datamodules import TaskSequence
from datamodules.paths import OutputPath
from recipes.base.measures import is_of_validation
from recipes.nn.encoders.files import BEST, RECORD


class BestCheckpoint(Callback):
    """Saves the state of a run with the best value of the validation measure that another callback monitors.

    The measure is that of a ``ModelCheckpoint`` or, without one, of ``EarlyStopping``. Every command takes the network
    of a run from ``best.ckpt``, if the run has one, and resumes the training from ``last.ckpt``. ``best.json`` records
    the epoch, counted from 0, and the validation measures.

    No such file is written if nothing monitors a validation measure, or if the data is a ``TaskSequence``: the network
    with the best value may not have learned the last task.

    Args:
        dirpath: folder for the two files.
    """

    def __init__(self, dirpath: OutputPath) -> None:
        self.path = Path(dirpath) / BEST
        self._monitor: str | None = None
        self._mode = "min"
        self._best: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """Names the measure: the best value of another measure is not resumed."""
        return self._generate_state_key(monitor=self._monitor, mode=self._mode)

    @property
    def file(self) -> Path | None:
        """The checkpoint with the best value so far; None if the run keeps none."""
        return self.path if self._best else None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the measure; a new training has no best value yet."""
        if stage == "fit":
            self._best = {}
        self._monitor, self._mode = _monitored(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copies the best checkpoint of the run that is resumed, which is beside its last one."""
        if not self._best or self.path.is_file():
            return
        earlier = Path(str(trainer.ckpt_path)).with_name(BEST)
        if trainer.strategy.broadcast(_step(earlier) == self._best["step"]):
            if trainer.is_global_zero:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                for name in (BEST, RECORD):
                    shutil.copyfile(earlier.with_name(name), self.path.with_name(name))
        else:
            rank_zero_warn(
                f"{earlier} is not the best checkpoint of the run that is resumed: the best one is sought from now on"
            )
            self._best = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the state if the measure is better than ever before."""
        value = trainer.callback_metrics.get(self._monitor or "")
        skips = trainer.sanity_checking or trainer.fast_dev_run  # type: ignore[attr-defined]
        if value is None or skips or trainer.state.fn != TrainerFn.FITTING:
            return
        if not trainer.strategy.reduce_boolean_decision(self._is_better(float(value))):
            return
        measures = {
            name: float(each) for name, each in trainer.callback_metrics.items() if not name.startswith("train/")
        }
        self._best = {"monitor": self._monitor, "mode": self._mode, "value": float(value), "measures": measures}
        self._best |= {"epoch": trainer.current_epoch, "step": trainer.global_step}
        trainer.save_checkpoint(self.path, weights_only=False)
        if trainer.is_global_zero:
            self.path.with_name(RECORD).write_text(json.dumps(self._best, indent=1) + "\n")

    def load_best(self, recipe: LightningModule) -> dict[str, Any]:
        """Gives a recipe the weights of the best checkpoint; returns the states of the callbacks in it."""
        checkpoint = torch.load(self.path, map_location="cpu", weights_only=True)
        recipe.load_state_dict(checkpoint["state_dict"])
        states: dict[str, Any] = checkpoint["callbacks"]
        return states

    def _is_better(self, value: float) -> bool:
        if not torch.isfinite(torch.tensor(value)):
            return False
        best = self._best.get("value")
        return best is None or (value < best if self._mode == "min" else value > best)

    def state_dict(self) -> dict[str, Any]:
        """Returns the record of the best value, for a checkpoint."""
        return self._best

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the record of the best value from a checkpoint."""
        self._best = state_dict


def _monitored(trainer: Trainer) -> tuple[str | None, str]:
    """The validation measure that a callback monitors, and whether its best value is the ``min`` or the ``max``."""
    if isinstance(getattr(trainer, "datamodule", None), TaskSequence):
        return None, "min"
    for kind in (ModelCheckpoint, EarlyStopping):
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, kind) and is_of_validation(callback.monitor):
                return callback.monitor, callback.mode
    return None, "min"


def _step(checkpoint: Path) -> int | None:
    """The optimiser step of a best checkpoint; None if there is none."""
    record = checkpoint.with_name(RECORD)
    if not (checkpoint.is_file() and record.is_file()):
        return None
    step: int = json.loads(record.read_text())["step"]
    return step
