from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from recipes.callbacks.running.checkpoint_io import AtomicCheckpointIO


class Checkpoint(ModelCheckpoint):
    """Keeps the newest state of a run in ``checkpoints/last.ckpt``, and always that of its end.

    What a run is judged by is its last epoch. To keep the best by some metric too, add a ``ModelCheckpoint`` to
    ``trainer.callbacks``. All checkpoints of the Trainer are written by ``AtomicCheckpointIO`` then, unless another
    ``CheckpointIO`` than Lightning's usual one was chosen: a run that is killed while it saves keeps the one before.

    Args:
        every_n_epochs: save after every n-th epoch, > 0; null is 1, or never if ``every_n_train_steps`` is set.
        every_n_train_steps: save after every n-th optimiser step, > 0: a run that is killed loses at most so many.
    """

    def __init__(self, every_n_epochs: int | None = None, every_n_train_steps: int | None = None) -> None:
        super().__init__(
            filename="last",
            every_n_epochs=every_n_epochs,
            every_n_train_steps=every_n_train_steps,
            # else only where there is validation, and never the last epoch where that has none
            save_on_train_epoch_end=every_n_train_steps is None,
            enable_version_counter=False,
        )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Has the Trainer write its checkpoints atomically."""
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # XLA has one of its own
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Saves if it is due; after the last batch of an epoch not yet, as a run could not go on between the two."""
        if not trainer.is_last_batch:
            super().on_train_batch_end(trainer, pl_module, *batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves if it is due, with what the recipe has done at the end of the epoch."""
        super().on_train_epoch_end(trainer, pl_module)
        if trainer.is_last_batch and self._every_n_train_steps > 0:
            super().on_train_batch_end(trainer, pl_module, None, None, 0)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end of the run, if that was not due anyway."""
        if self._last_global_step_saved != trainer.global_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save_checkpoint(trainer, self.format_checkpoint_name(self._monitor_candidates(trainer)))
