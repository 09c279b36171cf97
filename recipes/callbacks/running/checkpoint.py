from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from recipes.callbacks.running.checkpoint_io import AtomicCheckpointIO


class Checkpoint(ModelCheckpoint):
    """Saves the newest state of a run to ``checkpoints/last.ckpt``, and always its final state.

    ``AtomicCheckpointIO`` writes all checkpoints of the Trainer, unless a ``CheckpointIO`` was chosen. A run that is
    killed while it saves keeps its previous checkpoint. Training resumes from this state. Results are reported for it
    too, unless a callback monitors a validation measure, such as ``EarlyStopping`` or ``ModelCheckpoint``: then
    ``checkpoints/best.ckpt`` has the state with the best value, which every command takes (``BestCheckpoint``).

    Args:
        every_n_epochs: number of epochs between two checkpoints, > 0. If null, saves after every epoch, or at no epoch
            if ``every_n_train_steps`` is set.
        every_n_train_steps: number of optimiser steps between two checkpoints, > 0: the most that a killed run loses.
            If null, saves by epochs.
    """

    def __init__(self, every_n_epochs: int | None = None, every_n_train_steps: int | None = None) -> None:
        super().__init__(
            filename="last",
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            # otherwise it saves only after validation, and misses a last epoch without one
            save_on_train_epoch_end=every_n_train_steps is None,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Makes the Trainer write its checkpoints atomically."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # XLA has one of its own
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Saves if due, except after the last batch of an epoch, because a run cannot resume before the epoch ends."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, *batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if due, after the recipe's own end of the epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_last_batch and self._every_n_train_steps > 0:
            super().on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the final state, if it is not saved yet."""
        if self._last_global_step_saved != trainer.global_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save_checkpoint(trainer, self.format_checkpoint_name(self._monitor_candidates(trainer)))

    def save_now(self, trainer: Trainer, alone: bool = False) -> str:
        """Saves the state of the run, whether or not it is due.

        Args:
            trainer: Trainer of the run.
            alone: whether this process does not wait for others, which may have left. Only the first process writes.

        Returns:
            The path of the checkpoint.
        """
        path = self.format_checkpoint_name(self._monitor_candidates(trainer))
        if alone:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(self.save_weights_only)
            trainer.strategy.save_checkpoint(checkpoint, path)
        else:
            self._save_checkpoint(trainer, path)
        return path
