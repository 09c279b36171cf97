"""The scalars that training steps log: joined over all devices at once, on the steps whose values are read."""

import hashlib
import math
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

if TYPE_CHECKING:
    from recipes.base.recipe import Recipe

_AT_ONCE = 64  # an exchange has a multiple of this number of values, so that it succeeds if devices differ in names


class StepLog:
    """Holds the values that the training step of a recipe logs until a step whose values are read.

    Lightning's ``sync_dist`` reduces each value at every step, behind a barrier of its own. Here, the values of a step
    whose values are read are joined in one exchange after the optimiser step, without a barrier; other steps exchange
    nothing. Values are read on logged steps (``trainer.log_every_n_steps``), on the first and the last step of an epoch
    and of a run, and on every step if a callback or a schedule monitors one of them.

    Between these steps, ``trainer.callback_metrics`` and the progress bar keep the last values that were read, so they
    are equal on all devices. Of a value with ``on_epoch``, ``<name>`` is that of the epoch, and ``<name>_step`` that of
    the step. On one device everything is as with Lightning.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._names: list[str] = []  # of the last exchange: the same on every device
        self._known: set[str] = set()
        self._place: tuple[int, int] | None = None  # the batch after which values were read last

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
        is_function = callable(value) and not isinstance(value, nn.Module)
        if is_function and on_epoch:
            value, is_function = value(), False
        joined = recipe.trainer.world_size > 1 and isinstance(value, Tensor) and value.numel() == 1
        if not is_function and not joined:  # Lightning has an error for what is no number
            LightningModule.log(recipe, name, value, on_step=on_step, on_epoch=on_epoch, **options)
        elif on_epoch:
            of_epoch = {"on_step": False, "on_epoch": True, "sync_dist": True}  # joined when the epoch ends
            if on_step is not False:
                self._waiting[f"{name}_step"] = value.detach().clone(), options
                LightningModule.log(recipe, f"{name}_epoch", value, **options, **of_epoch)  # type: ignore[arg-type]
                options = {**options, "prog_bar": False, "logger": False}  # only monitors use the short name
            LightningModule.log(recipe, name, value, **options, **of_epoch)  # type: ignore[arg-type]
        else:
            kept = value if is_function else value.detach().clone()
            self._waiting[name] = kept, {**options, "on_step": on_step}

    def settle(self, recipe: "Recipe") -> None:
        """Logs what waits, if it is read after this step; every device has to call it.

        Raises:
            ValueError: if another device has logged other names.
        """
        trainer = recipe.trainer
        place = trainer.current_epoch, trainer.fit_loop.epoch_loop.batch_idx
        if not (self._waiting or trainer.world_size > 1) or place == self._place or not self._is_read(trainer):
            return
        self._place = place
        waiting, self._waiting = self._waiting, {}
        values = [value() if not isinstance(value, Tensor) else value for value, _ in waiting.values()]
        if trainer.world_size > 1:
            everyones = self._everyones(recipe, list(waiting), values)
        else:
            everyones = [value[None] for value in values]
        self._known |= waiting.keys()
        # as if nobody had logged since the training step: in the first one of an epoch, Lightning resets its values
        # when a log of another hook stands in between
        connector = trainer._logger_connector
        hook, recipe._current_fx_name = recipe._current_fx_name, "training_step"
        by, connector._current_fx = connector._current_fx, "training_step"
        try:
            for (name, (_, options)), of_devices in zip(waiting.items(), everyones, strict=True):
                LightningModule.log(recipe, name, _reduced(of_devices, options["reduce_fx"]), **options)
        finally:
            recipe._current_fx_name, connector._current_fx = hook, by

    def _is_read(self, trainer: Trainer) -> bool:
        """Whether values are read after this step: the same on every device."""
        loop = trainer.fit_loop
        if loop._should_accumulate():
            return False
        first = loop.epoch_loop.batch_idx < trainer.accumulate_grad_batches
        return (
            first
            or trainer._logger_connector.should_update_logs
            or bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
            or loop.epoch_loop._is_training_done
            or not self._known.isdisjoint(_monitored(trainer))
        )

    def _everyones(self, recipe: "Recipe", names: list[str], values: list[Tensor]) -> list[Tensor]:
        """The values of all devices [devices], for each value; at least float32."""
        mark = int.from_bytes(hashlib.sha256("\n".join(names).encode()).digest()[:6], "big")
        own = torch.zeros(_AT_ONCE * math.ceil((1 + len(values)) / _AT_ONCE), dtype=torch.float64, device=recipe.device)
        own[0].fill_(mark)
        if values:
            torch.stack([value.detach().reshape(()).to(own) for value in values], out=own[1 : 1 + len(values)])
        rows = recipe.gather(own[None])
        if names != self._names:
            if any(other != mark for other in rows[:, 0].tolist()):
                raise ValueError(
                    f"devices log different values in a training step; this one logs {', '.join(names) or 'none'}: "
                    "log the same names on every device"
                )
            self._names = names
        columns = rows[:, 1 : 1 + len(values)].unbind(1)
        types = [torch.promote_types(value.dtype, torch.float32) for value in values]
        return [column.to(dtype) for column, dtype in zip(columns, types, strict=True)]


def _monitored(trainer: Trainer) -> set[Any]:
    parts = [*trainer.callbacks, *trainer.lr_scheduler_configs]  # type: ignore[attr-defined]
    return {getattr(part, "monitor", None) for part in parts}


def _reduced(of_devices: Tensor, reduce_fx: Any) -> Tensor:
    if isinstance(reduce_fx, str):
        reduce_fx = getattr(torch, {"avg": "mean"}.get(reduce_fx.lower(), reduce_fx.lower()))
    return reduce_fx(of_devices)
