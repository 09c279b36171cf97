import time
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from recipes.base.finite import StopOnDivergence


class Health(StopOnDivergence):
    """Stops a run that diverges, and shows whether training is stable and whether it waits for data.

    A loss or a weight that is not finite (NaN or infinite) ends the run with ``recipes.errors.Diverged``, after that
    step and before anything is saved: the last checkpoint of the run is the one before it. The check never waits for a
    GPU: it reads the numbers of a step once the GPU has computed them, and before every validation and checkpoint. On a
    GPU, and with several processes, the run therefore ends a step or more after the one that the message names. All
    processes end at the same step. Validation, test and prediction refuse weights that are not finite.

    Mixed precision in float16 skips steps whose scaled gradients overflow. This is no failure; ten losses in a row that
    are not finite are one.

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
        super().__init__(on_nonfinite)
        self._logged_step = 0
        self._start = 0.0  # of the current batch
        self._end: float | None = None  # of the batch before it
        self._waited = self._passed = 0.0  # since the last logged step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Logs ``train/grad_norm``, and looks at the gradients."""
        if _is_logged(trainer, trainer.global_step + 1):
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            gradients = [p.grad for p in parameters if p.grad is not None]
            pl_module.log("train/grad_norm", get_total_norm(gradients))
        super().on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again: making the epoch's iterator does not count."""
        self._end = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again."""
        self._end = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The wait is over."""
        self._start = time.perf_counter()
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs ``train/data_wait``, and checks the loss and the weights."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
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
