import time
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from recipes.callbacks.monitoring.finite import FiniteCheck, listed
from recipes.nn.finite import not_finite


class Health(Callback):
    """Stops a run that diverges, and shows whether training is stable and whether it waits for data.

    A loss or a weight that is not finite (NaN or infinite) ends the run with ``recipes.errors.Diverged``, after that
    step and before anything is saved: the last checkpoint of the run is the one before it. The check never waits for a
    GPU: it reads the numbers of a step once the GPU has computed them, and before every validation and checkpoint. On a
    GPU, and with several processes, the run therefore ends a step or more after the one that the message names. All
    processes end at the same step. Validation, test and prediction refuse weights that are not finite.

    Mixed precision in float16 skips steps whose scaled gradients overflow. This is no failure; ten losses in a row that
    are not finite are one. With ``16-true``, which scales nothing, ten steps in a row without any gradient also end the
    run: its gradients are too small for float16.

    ``train/grad_norm`` is the global 2-norm of the gradients that the optimiser gets: unscaled, averaged over devices,
    before clipping. It is computed only on the steps that are logged.

    ``train/data_wait`` is the share, in [0, 1], of the wall time since the last logged step that the first device's
    process spent between two training batches, mostly waiting for the next batch. Validation does not count. A GPU
    continues to work while its process waits, so a small share costs nothing. If the share is large, use more workers.

    Args:
        on_nonfinite: what to do about a loss, gradient or weight that is not finite. ``stop`` ends the run. ``skip``
            leaves out the optimiser steps whose gradients are not finite, restores the statistics of batch norm, and
            ends the run after ten such batches in a row; it waits for the device at every step. ``ignore`` goes on.

    Raises:
        ValueError: if ``on_nonfinite`` is none of these.
    """

    def __init__(self, on_nonfinite: Literal["stop", "skip", "ignore"] = "stop") -> None:
        if on_nonfinite not in ("stop", "skip", "ignore"):
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}: it must be stop, skip or ignore")
        self.on_nonfinite = on_nonfinite
        self._check: FiniteCheck | None = None
        self._logged_step = 0
        self._start = 0.0  # of the current batch
        self._end: float | None = None  # of the batch before it
        self._waited = self._passed = 0.0  # since the last logged step

    # Whether everything is finite

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to check."""
        if trainer.precision == "16-true":
            rank_zero_warn(
                "precision 16-true keeps weights and gradients in float16 and scales nothing: small gradients become 0 "
                "and large numbers infinite. bf16-true, or 16-mixed, trains more reliably"
            )
        if self.on_nonfinite != "ignore":
            self._check = FiniteCheck(trainer, pl_module, skips=self.on_nonfinite == "skip")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuses to save what is not finite, so that the checkpoint before it is kept."""
        if self._check is not None:
            self._check.require_finite_weights()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the weights that training ends with."""
        if self._check is not None:
            self._check.require_finite_weights()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ends the check."""
        self._check = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the check."""
        self._check = None

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses weights that are not finite."""
        if self.on_nonfinite != "ignore" and (names := not_finite(pl_module.state_dict())):
            raise ValueError(
                f"weights of this {type(pl_module).__name__} are not finite ({listed(names)}): the run that made them "
                "diverged. Use an earlier checkpoint, or train again with a lower learning rate"
            )

    on_predict_start = on_test_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuses weights that are not finite; those in training are checked at every step."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_test_start(trainer, pl_module)

    # Gradients and time

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Logs ``train/grad_norm``, and looks at the gradients."""
        if _is_logged(trainer, trainer.global_step + 1):
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            gradients = [p.grad for p in parameters if p.grad is not None]
            pl_module.log("train/grad_norm", get_total_norm(gradients))
        if self._check is not None:
            self._check.before_step(optimizer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again: making the epoch's iterator does not count."""
        self._end = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again."""
        self._end = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The wait is over."""
        self._start = time.perf_counter()
        if self._check is not None:
            self._check.before_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs ``train/data_wait``, and checks the loss and the weights."""
        if self._check is not None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else None
            validates: Any = trainer.val_check_batch
            is_due = trainer.is_last_batch or (validates is not None and (batch_idx + 1) % validates == 0)
            self._check.after_batch(loss, is_due)
        now = time.perf_counter()
        if self._end is not None:
            self._waited += self._start - self._end
            self._passed += now - self._end
        self._end = now
        step = trainer.global_step
        if _is_logged(trainer, step) and step != self._logged_step and self._passed > 0:
            self._logged_step = step
            pl_module.log("train/data_wait", self._waited / self._passed)
            self._waited = self._passed = 0.0


def _is_logged(trainer: Trainer, step: int) -> bool:
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(trainer.fast_dev_run) or (every > 0 and step % every == 0)  # type: ignore[attr-defined]
