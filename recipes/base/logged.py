"""The scalars that training steps log: joined over all devices at once, on the steps whose values are read."""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

if TYPE_CHECKING:
    from recipes.base.recipe import Recipe


class StepLog:
    """Holds the values that the training step of a recipe logs until a step whose values are read.

    Lightning's ``sync_dist`` reduces each value at every step, behind a barrier of its own. Here, the values of a step
    whose values are read are joined in one exchange after the optimiser step, without a barrier; other steps exchange
    nothing. Values are read on logged steps (``trainer.log_every_n_steps``), on the last step of an epoch and of a run,
    and on every step if a callback or a schedule monitors one of them. The first value of a name is read, too.

    Between these steps, ``trainer.callback_metrics`` and the progress bar keep the last values that were read, so they
    are equal on all devices. On one device they are those of every step.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._known: set[str] = set()

    def add(
        self,
        recipe: "Recipe",
        name: str,
        value: Any,
        prog_bar: bool = False,
        logger: bool | None = None,
        on_step: bool | None = None,
        on_epoch: bool | None = None,
        reduce_fx: Any = "mean",
        sync_dist: bool = True,
        **options: Any,
    ) -> None:
        """Takes a value of a training step.

        Args:
            recipe: recipe that logs.
            name: name of the measure.
            value: scalar tensor, or function without arguments that computes one. It is called if the value is read.
            prog_bar: as of ``LightningModule.log``.
            logger: as of ``LightningModule.log``.
            on_step: as of ``LightningModule.log``.
            on_epoch: as of ``LightningModule.log``. The value of an epoch is the mean over all devices and steps.
            reduce_fx: as of ``LightningModule.log``; over the devices, too.
            sync_dist: without effect, because all values are joined.
            **options: of ``LightningModule.log``.
        """
        options = {**options, "prog_bar": prog_bar, "logger": logger, "reduce_fx": reduce_fx}
        if on_epoch:
            value = value if isinstance(value, Tensor) else value()
            of_epoch = {"on_step": False, "on_epoch": True, "sync_dist": True}  # joined when the epoch ends
            if on_step is not False:
                self._take(recipe, f"{name}_step", value, options)
                LightningModule.log(recipe, f"{name}_epoch", value, **options, **of_epoch)  # type: ignore[arg-type]
                options = {**options, "prog_bar": False, "logger": False}  # only monitors use the short name
            LightningModule.log(recipe, name, value, **options, **of_epoch)  # type: ignore[arg-type]
        else:
            self._take(recipe, name, value, options)

    def _take(self, recipe: "Recipe", name: str, value: Any, options: dict[str, Any]) -> None:
        if not isinstance(value, Tensor):
            self._waiting[name] = value, options
        elif recipe.trainer.world_size == 1 or value.numel() != 1:  # Lightning has an error for more than a number
            LightningModule.log(recipe, name, value, **options)
        else:
            self._waiting[name] = value.detach().clone(), options

    def settle(self, recipe: "Recipe") -> None:
        """Logs what waits, if it is read after this step; every device has to call it."""
        if not self._waiting or not self._is_read(recipe.trainer):
            return
        self._known |= self._waiting.keys()
        waiting, self._waiting = self._waiting, {}
        values = [value if isinstance(value, Tensor) else value() for value, _ in waiting.values()]
        everyones = _everyones(recipe, values)
        hook, recipe._current_fx_name = recipe._current_fx_name, "training_step"
        try:
            for (name, (_, options)), of_devices in zip(waiting.items(), everyones):
                LightningModule.log(recipe, name, _reduced(of_devices, options["reduce_fx"]), **options)
        finally:
            recipe._current_fx_name = hook

    def _is_read(self, trainer: Trainer) -> bool:
        loop = trainer.fit_loop
        if loop._should_accumulate():
            return False
        return (
            trainer._logger_connector.should_update_logs
            or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
            or loop.epoch_loop._is_training_done
            or not self._waiting.keys() <= self._known
            or not self._waiting.keys().isdisjoint(_monitored(trainer))
        )


def _monitored(trainer: Trainer) -> set[Any]:
    parts = [*trainer.callbacks, *trainer.lr_scheduler_configs]  # type: ignore[attr-defined]
    return {getattr(part, "monitor", None) for part in parts}


def _everyones(recipe: "Recipe", values: list[Tensor]) -> list[Tensor]:
    """The values of all devices [devices], for each value; at least float32."""
    types = [torch.promote_types(value.dtype, torch.float32) for value in values]
    own = torch.cat([value.detach().reshape(1).to(recipe.device, dtype) for value, dtype in zip(values, types)])
    columns = recipe.gather(own).view(-1, len(values)).unbind(1)
    return [column.to(dtype) for column, dtype in zip(columns, types)]


def _reduced(of_devices: Tensor, reduce_fx: Any) -> Tensor:
    if isinstance(reduce_fx, str):
        reduce_fx = getattr(torch, {"avg": "mean"}.get(reduce_fx.lower(), reduce_fx.lower()))
    return reduce_fx(of_devices)
