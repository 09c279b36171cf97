"""Ends a run whose loss or weights are not finite, without waiting for a GPU."""

from collections import deque
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from recipes.base.agreement import Agreement
from recipes.errors import Diverged
from recipes.nn.finite import largest, listed, not_finite

_IN_A_ROW = 10  # batches, where single ones may fail


class StopOnDivergence(Callback):
    """Ends a run whose loss or weights are not finite, and refuses such weights in validation, test and prediction.

    Every recipe adds this callback to its Trainer, unless the Trainer has one, such as ``recipes.callbacks.Health``.
    It logs nothing.

    Args:
        on_nonfinite: ``stop``, ``skip`` or ``ignore``, as of ``Health``.

    Raises:
        ValueError: if ``on_nonfinite`` is none of these.
    """

    def __init__(self, on_nonfinite: Literal["stop", "skip", "ignore"] = "stop") -> None:
        if on_nonfinite not in ("stop", "skip", "ignore"):
            raise ValueError(f"on_nonfinite is {on_nonfinite!r}: it must be stop, skip or ignore")
        self.on_nonfinite = on_nonfinite
        self._check: FiniteCheck | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begins to check."""
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

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Looks at the gradients."""
        if self._check is not None:
            self._check.before_step(optimizer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps what a batch that is skipped must not change."""
        if self._check is not None:
            self._check.before_batch()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Checks the loss and the weights."""
        if self._check is not None:
            loss = outputs.get("loss") if isinstance(outputs, dict) else None
            validates: Any = trainer.val_check_batch
            is_due = trainer.is_last_batch or (validates is not None and (batch_idx + 1) % validates == 0)
            self._check.after_batch(loss, is_due)


class _Step(NamedTuple):
    """Numbers of a batch, on their way from the device."""

    number: int  # of the optimiser step, from 1
    lr: float
    values: Tensor  # loss, largest weight, largest gradient
    copied: Any  # event of the GPU; None if the values are there


class FiniteCheck:
    """Follows loss and weights of a training, and ends it once they are not finite.

    Args:
        trainer: Trainer that trains.
        recipe: whose weights are checked.
        skips: whether steps whose gradients are not finite are left out.
    """

    def __init__(self, trainer: Trainer, recipe: LightningModule, skips: bool) -> None:
        self.skips = skips
        self._recipe = recipe
        self._trainer = trainer
        self._agreement = Agreement(trainer)
        self._weights = [p for p in recipe.parameters() if p.requires_grad]
        scaled = isinstance(trainer.precision_plugin, MixedPrecision) and trainer.precision_plugin.scaler is not None
        self._tolerated = _IN_A_ROW - 1 if skips or scaled else 0
        self._lr = 0.0
        self._gradient: Tensor | None = None  # the largest, of the last step
        self._waiting: deque[_Step] = deque()
        self._seen = trainer.global_step
        self._bad_losses = 0  # in a row
        self._last_finite: float | None = None
        self._problem = ""
        self._statistics: dict[Tensor, Tensor] = {}  # of batch norm, before the batches of a step

    # The hooks of the training loop

    def before_batch(self) -> None:
        """Keeps the statistics of batch norm, which a batch that is skipped must not change."""
        if self.skips and not self._statistics:
            parts = [module for module in self._recipe.modules() if hasattr(module, "running_mean")]
            buffers = [buffer for module in parts for buffer in module.buffers(recurse=False)]
            self._statistics = {buffer: buffer.clone() for buffer in buffers}

    def before_step(self, optimizer: Optimizer) -> None:
        """Looks at the gradients, where they matter."""
        self._lr = float(optimizer.param_groups[0]["lr"])
        if not self.skips:
            return
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._gradient = torch.maximum(largest(gradients), largest([-gradient for gradient in gradients]))
        if not self._gradient.isfinite():
            for parameter in parameters:
                parameter.grad = None  # optimisers pass over such parameters: no momentum, no weight decay
            with torch.no_grad():
                for buffer, before in self._statistics.items():
                    buffer.copy_(before)
        self._statistics = {}

    def after_batch(self, loss: Tensor | None, is_due: bool) -> None:
        """Takes the numbers of a batch, and looks at those that have arrived.

        Args:
            loss: loss of the batch, if it has one.
            is_due: whether validation or the end of an epoch follows: then nothing remains unknown.

        Raises:
            Diverged: if a batch was not finite, in all processes at the same batch.
        """
        step = self._trainer.global_step
        stepped, self._seen = step != self._seen, step
        device = self._recipe.device
        nothing = torch.zeros((), device=device)
        numbers = (
            nothing if loss is None else loss.detach().float().reshape(()),
            largest(self._weights).to(device) if stepped else nothing,
            torch.full_like(nothing, torch.nan) if self._gradient is None else self._gradient.to(device),
        )
        self._gradient = None
        self._waiting.append(_Step(step if stepped else step + 1, self._lr, *_to_host(torch.stack(numbers))))
        while self._waiting and (is_due or _has_arrived(self._waiting[0])):
            self._judge(self._waiting.popleft())
        if self._agreement.settle(int(bool(self._problem)), at_once=is_due):
            self._end()

    def require_finite_weights(self) -> None:
        """Ends the run if a weight or buffer is not finite now: they are the same in every process.

        Raises:
            Diverged: if so.
        """
        if names := not_finite(self._recipe.state_dict()):
            raise Diverged(self._problem or self._words(f"weights became infinite or NaN ({listed(names)})", None))

    # What follows from the numbers

    def _judge(self, step: _Step) -> None:
        if step.copied is not None:
            step.copied.synchronize()
        loss, weight, gradient = step.values.tolist()
        if _is_finite(loss) and not (self.skips and gradient == torch.inf):
            self._last_finite, self._bad_losses = loss, 0
        else:
            self._bad_losses += 1
        if self._problem:
            return
        if self._bad_losses > self._tolerated:
            times = f"the loss or its gradient was not finite {self._bad_losses} times in a row"
            self._problem = self._words(times if self._tolerated else f"the loss was {loss}", step)
        elif not _is_finite(weight):
            self._problem = self._words("weights became infinite or NaN", step)

    def _words(self, what: str, step: _Step | None) -> str:
        number, lr = (step.number, step.lr) if step else (self._trainer.global_step, self._lr)
        last = (
            "no loss before it was finite" if self._last_finite is None else f"last finite loss {self._last_finite:g}"
        )
        half = "precision bf16-mixed or 32-true, " if str(self._trainer.precision).startswith("16") else ""
        clipped = "or clipped gradients (gradient_clip_val 1 of the Trainer)"
        if not self.skips:
            clipped = "clipped gradients (gradient_clip_val 1 of the Trainer) or, for single bad batches, the callback "
            clipped += "Health with on_nonfinite skip (--health.on_nonfinite skip)"
        saved = getattr(self._trainer.checkpoint_callback, "_last_checkpoint_saved", "")
        return (
            f"{what} at step {number} (learning rate {lr:g}, {last}). Try {half}a lower learning rate, a longer "
            f"warm-up, {clipped}. "
            + (f"The checkpoint before it is {saved}" if saved else "No checkpoint was saved before it")
        )

    def _end(self) -> None:
        problems = [problem for problem in self._agreement.everyones(self._problem) if problem]
        raise Diverged(problems[0])


def _is_finite(number: float) -> bool:
    return abs(number) < float("inf")


def _to_host(values: Tensor) -> tuple[Tensor, Any]:
    """Starts to copy; the event says when the copy is there."""
    if values.device.type != "cuda":
        return values, None
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return copy, event


def _has_arrived(step: _Step) -> bool:
    return step.copied is None or step.copied.query()
