"""What test_logged.py runs in one process and in two: a recipe that logs, and what readers of its values find."""

from typing import Any

import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import Logger
from torch import Tensor

from datamodules import Digits
from recipes.base import Recipe
from recipes.nn import ConvNet
from tests.helpers.training import quiet_trainer

BATCHES = 5  # of an epoch


class Rows(Logger):
    """Keeps what is logged, in memory."""

    name, version = "rows", 0

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step or 0, {name: value for name, value in metrics.items() if name != "epoch"}))

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Keeps none."""


class Read(Callback):
    """Reads the Trainer's values after each batch, and stops it after a number of steps."""

    def __init__(self, monitor: str | None = None, stop: int = 0) -> None:
        self.monitor, self.stop = monitor, stop
        self.values: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer, *_):
        self.values.append({name: value.item() for name, value in trainer.callback_metrics.items()})
        if trainer.global_step == self.stop > 0:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer, *_):
        self.of_epoch = {name: value.item() for name, value in trainer.callback_metrics.items()}


class LogsBetween(Read):
    """Logs a value of its own between the training step and the optimiser step."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.log("norm", torch.ones(()))


class Logging(Recipe):
    """Logs, at batch b of rank r, the number 10 b + 4 r in many ways."""

    def __init__(self, of_epoch: bool = False) -> None:
        super().__init__(ConvNet((4,)), lambda parameters: torch.optim.SGD(parameters, lr=0.0))
        self.of_epoch = of_epoch
        self.computed: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        number = 10 * batch_idx + 4 * self.global_rank
        value = torch.tensor(float(number))
        self.log("mean", value)
        self.log("with_option", value, sync_dist=True)
        self.log("largest", value, reduce_fx="max")
        self.log("sum", value, reduce_fx=torch.sum)
        self.log("number", number)
        self.log("finer", value.double() + 1e-9)

        kept = value.clone()

        def late() -> Tensor:
            self.computed.append(batch_idx)
            return self.gather(kept[None]).sum()

        self.log("late", late)
        if batch_idx % 2:
            self.log("odd", value)
        if self.of_epoch:
            self.log("both", value, on_step=True, on_epoch=True, prog_bar=True)
            self.log("slow", value, on_step=False, on_epoch=True)
        value.zero_()
        return self(batch.image).sum()


def logged(devices: int, reader: Read, of_epoch: bool = False, **options: Any) -> tuple[Any, ...]:
    """Trains; returns what was logged, what the reader saw, and on which batches the late value was computed."""
    seed_everything(0, verbose=False)
    rows, recipe = Rows(), Logging(of_epoch)
    defaults = {"max_epochs": 1, "limit_train_batches": BATCHES, "limit_val_batches": 0, "log_every_n_steps": 3}
    trainer = quiet_trainer(devices, logger=rows, callbacks=[reader], **{**defaults, **options})
    trainer.fit(recipe, Digits(size=8, batch_size=16))
    return rows.rows, reader.values, reader.of_epoch, recipe.computed
