import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer


class Health(Callback):
    """Shows whether training is stable, and whether it waits for data.

    ``train/grad_norm`` is the global 2-norm of the gradients that the optimiser gets: unscaled, averaged over devices,
    before clipping. It is computed only on the steps that are logged.

    ``train/data_wait`` is the share, in [0, 1], of the wall time since the last logged step that the first device's
    process spent between two training batches, mostly waiting for the next batch. Validation does not count. A GPU
    continues to work while its process waits, so a small share costs nothing. If the share is large, use more workers.
    """

    def __init__(self) -> None:
        self._logged_step = 0
        self._start = 0.0  # of the current batch
        self._end: float | None = None  # of the batch before it
        self._waited = self._passed = 0.0  # since the last logged step

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Logs ``train/grad_norm``."""
        if _is_logged(trainer, trainer.global_step + 1):
            parameters = (p for group in optimizer.param_groups for p in group["params"])
            gradients = [p.grad for p in parameters if p.grad is not None]
            pl_module.log("train/grad_norm", get_total_norm(gradients))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again: making the epoch's iterator does not count."""
        self._end = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock again."""
        self._end = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The wait is over."""
        self._start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs ``train/data_wait``."""
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
