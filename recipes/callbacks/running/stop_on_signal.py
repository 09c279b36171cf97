from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as AnyCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from recipes.base.agreement import Agreement
from recipes.callbacks.running.checkpoint import Checkpoint
from recipes.callbacks.running.signals import Signals


class StopOnSignal(AnyCheckpoint):
    """Saves and leaves when SIGTERM or SIGINT arrives, so that the resumed run ends with the same bits.

    Training stops after the optimiser step in progress, or at once while it waits for data. A validation is broken off;
    the resumed run repeats it. The end of an epoch, with what a continual recipe does at the end of a task, is
    finished first. The processes of a run stop after the same step, whichever of them got the signal. Outside of
    training, all is saved already, and the process leaves at once. The requeue signal of SLURM is one of the signals,
    so that its checkpoint is not that of a step in progress, as from Lightning's handler.

    It has to be the last callback of the Trainer.

    Args:
        signals: entered as a context.
    """

    def __init__(self, signals: Signals) -> None:
        self.signals = signals
        self._agreement: Agreement | None = None
        self._step = 0

    # When the process can be left at once

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the signals back from Lightning."""
        self.signals.listen()

    on_test_start = on_predict_start = on_sanity_check_start

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to train: from here on there is something to save."""
        self.signals.listen()
        self._step = trainer.global_step
        self._agreement = Agreement(trainer)
        # instead of Lightning's exchange at every step, which the host waits for
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = _nothing  # type: ignore[method-assign]
        self.signals.may_leave = lambda: self._may_leave(trainer)
        self.signals.saves = True

    def _may_leave(self, trainer: Trainer) -> bool:
        if trainer.state.fn != TrainerFn.FITTING or trainer.validating:
            return True
        if trainer.world_size > 1 or not getattr(trainer.train_dataloader, "waiting", False):
            return False
        loop = trainer.fit_loop.epoch_loop
        validates: Any = trainer.val_check_batch
        batches = loop.batch_progress.current.completed
        at_validation = validates is None or batches % validates == 0  # and before the first batch of an epoch
        return not at_validation and not loop._should_accumulate()

    # When it is left

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        """Saves and leaves after an optimiser step, in all processes at the same one."""
        if self._agreement is None or trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        wish = self._agreement.settle(self.signals.number, at_once=trainer.is_last_batch)
        self.signals.number = self.signals.number or wish
        if wish and not trainer.is_last_batch:
            trainer._logger_connector.update_train_step_metrics()  # the row of this step: Lightning writes it later
            self._save(trainer)
            self.signals.leave()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves before a validation."""
        self.signals.listen()
        if self.signals.number and trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.signals.leave()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves and leaves after an epoch."""
        if self._agreement is None:
            return
        wish = self._agreement.settle(self.signals.number, at_once=True)
        self.signals.number = self.signals.number or wish
        if wish:
            self._save(trainer)
            self.signals.leave()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends training: all is saved."""
        self._end()
        self.on_fit_end(trainer, pl_module)
        if self.signals.number:
            self.signals.leave()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Notes where all is, also where a resumed run had nothing left to train."""
        if (checkpoint := self._checkpoint(trainer)) is not None:
            path = checkpoint._last_checkpoint_saved or str(trainer.ckpt_path)
            self._note(trainer, "the whole training is in", path)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves a training that was left in a validation, or while it waited for data."""
        training, self._agreement = self._agreement is not None, None
        if not training or not self.signals.number or trainer.sanity_checking:
            self._end()
            return
        loop = trainer.fit_loop.epoch_loop
        if trainer.validating:
            progress = loop.val_loop.batch_progress
            progress.reset()
            progress.increment_ready()  # Lightning then resumes with this validation, and that from its start
            progress.increment_started()
            self._save(trainer, alone=True)
        elif getattr(trainer.train_dataloader, "waiting", False):
            self._save(trainer, alone=True)
        self._end()

    def _end(self) -> None:
        self._agreement = None
        self.signals.may_leave = lambda: True
        self.signals.saves = False

    def _save(self, trainer: Trainer, alone: bool = False) -> None:
        """Saves to the last checkpoint; ``alone`` waits for no other process."""
        if (checkpoint := self._checkpoint(trainer)) is not None:
            self._note(trainer, "saved", checkpoint.save_now(trainer, alone))

    def _checkpoint(self, trainer: Trainer) -> Checkpoint | None:
        """The callback that saves the run, if it does."""
        if trainer.fast_dev_run or trainer.global_step == 0:  # type: ignore[attr-defined]
            return None
        return next((each for each in trainer.callbacks if isinstance(each, Checkpoint)), None)  # type: ignore[attr-defined]

    def _note(self, trainer: Trainer, what: str, path: str) -> None:
        """Notes what the process says when it leaves."""
        if trainer.is_global_zero:
            self.signals.outcome = (
                f"after step {trainer.global_step}: {what} {path}; 'recipes fit --ckpt_path {path}' goes on"
            )


def _nothing() -> None:
    pass
