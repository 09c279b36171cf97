"""Resuming: a run continues its checkpoint, and obeys its own options where they differ from the checkpoint's."""

import copy
import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from recipes.errors import CheckpointMismatch
from recipes.optim import RunSchedule

if TYPE_CHECKING:
    from recipes.base.recipe import Recipe

_OPTIONS = "options"  # the key in checkpoints
_AS_CREATED: WeakKeyDictionary[Callback, dict[str, Any]] = WeakKeyDictionary()  # states before the first run


class Resume(Callback):
    """Lets the options of a resumed run act in its optimiser, its schedule and its callbacks.

    A state in a checkpoint mixes progress (moments, counters, best scores) with options (learning rate, weight decay,
    patience). Loading it brings the old options back. Each checkpoint therefore also has the values that optimiser,
    schedule and callbacks had when they were created. A value that is created differently now is an option that the
    user has changed: the new value stays. All other values are those of the checkpoint.

    - An optimiser of another class starts with an empty state.
    - A schedule of another class starts where the run is: a schedule of ``recipes.optim`` at the share of the run that
      is done, a schedule of torch after the epochs that are done.
    - The recipe finds the position in the run by the images trained on (``Recipe.resume_at``): with another batch size,
      the number of steps has another meaning.

    Every recipe adds this callback to its Trainer. A checkpoint of an earlier version has no record of the options: the
    new options of the optimiser act, and those of callbacks and torch's schedules are the checkpoint's.
    """

    def __init__(self) -> None:
        self._forget()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the previous run of the Trainer."""
        self._forget()

    def _forget(self) -> None:
        self._callbacks: dict[str, Any] | None = None
        self._optimizers: list[dict[str, Any]] = []
        self._recorded: list[Optimizer] = []
        self._checkpoint: dict[str, Any] | None = None
        self._had_schedule = False  # one of recipes.optim

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the changed options of the callbacks into their states, before these are loaded.

        A test or a prediction has the states of the checkpoint as they are.
        """
        self._record_callbacks(trainer)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._checkpoint = checkpoint
        self._had_schedule = any("step" in state for state in checkpoint.get("lr_schedulers", []))
        then = checkpoint.get(_OPTIONS, {}).get("callbacks", {})
        states = checkpoint["callbacks"]
        for name in states.keys() & then.keys() & self._callbacks.keys():  # type: ignore[union-attr]
            states[name] = merged(states[name], then[name], self._callbacks[name])  # type: ignore[index]

    def on_fit_start(self, trainer: Trainer, pl_module: "Recipe") -> None:  # type: ignore[override]
        """Puts the changed options of optimisers and schedules into their states, before these are loaded."""
        self._record_callbacks(trainer)
        self._record_optimizers(trainer)
        if self._checkpoint is None or "optimizer_states" not in self._checkpoint:
            return
        then = self._checkpoint.get(_OPTIONS, {}).get("optimizers", [])
        states, schedules = self._checkpoint["optimizer_states"], self._checkpoint["lr_schedulers"]
        for place, (optimizer, now) in enumerate(zip(trainer.optimizers, self._optimizers)):
            if place >= len(states):
                break
            old = then[place] if place < len(then) else _unrecorded(states[place], schedules[place : place + 1], now)
            scheduler = _scheduler_of(trainer, optimizer)
            states[place] = _optimizer_state(states[place], old, now, optimizer)
            if scheduler is not None:
                state = schedules[place] if place < len(schedules) else None
                done = pl_module.epochs_of_schedule(_epochs(self._checkpoint))
                schedules[place : place + 1] = [_scheduler_state(state, old, now, scheduler, states[place], done)]

    def on_train_start(self, trainer: Trainer, pl_module: "Recipe") -> None:  # type: ignore[override]
        """Places the run where it is, in images, once everything else is loaded."""
        if self._checkpoint is not None:
            pl_module.resume_at(self._checkpoint.get(_OPTIONS, {}).get("run", {}), self._had_schedule)
            self._checkpoint = None

    def on_train_batch_start(self, trainer: Trainer, *batch: Any) -> None:
        """Notes the options of an optimiser that was created within the run, such as that of a new task."""
        if any(ours is not theirs for ours, theirs in zip(self._recorded, trainer.optimizers)):
            self._record_optimizers(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: "Recipe", checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """Adds the options to the checkpoint, and the position in the run."""
        run = {} if math.isinf(trainer.num_training_batches) else pl_module.run_position
        checkpoint[_OPTIONS] = {"callbacks": self._callbacks or {}, "optimizers": self._optimizers, "run": run}

    def _record_callbacks(self, trainer: Trainer) -> None:
        if self._callbacks is None:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if callback not in _AS_CREATED:  # later, a state also has the progress of earlier runs
                    _AS_CREATED[callback] = copy.deepcopy(callback.state_dict())
            states = {callback.state_key: _AS_CREATED[callback] for callback in trainer.callbacks}  # type: ignore[attr-defined]
            self._callbacks = copy.deepcopy({name: state for name, state in states.items() if state})

    def _record_optimizers(self, trainer: Trainer) -> None:
        self._recorded = list(trainer.optimizers)
        self._optimizers = [_record(optimizer, _scheduler_of(trainer, optimizer)) for optimizer in self._recorded]


def merged(saved: Any, then: Any, now: Any) -> Any:
    """Merges a saved state with changed options.

    Args:
        saved: state in the checkpoint.
        then: state of the same object when it was created in the run of the checkpoint.
        now: state of the object that was created for this run.

    Returns:
        The saved values, except where the values at creation differ: there those of ``now``.
    """
    if _same(then, now):
        return saved
    if isinstance(saved, Mapping) and isinstance(then, Mapping) and isinstance(now, Mapping):
        new = {name: value for name, value in now.items() if name not in saved}
        return new | {
            name: merged(value, then[name], now[name]) if name in then and name in now else value
            for name, value in saved.items()
        }
    lists = all(isinstance(each, list) for each in (saved, then, now))
    if lists and len(saved) == len(then) == len(now):
        return [merged(*three) for three in zip(saved, then, now)]
    return now


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(*two) for two in zip(a, b))
    return bool(a == b) or (a != a and b != b)  # two NaN


def _record(optimizer: Optimizer, scheduler: Any) -> dict[str, Any]:
    """Returns the options of an optimiser and its schedule, just created."""
    groups = [_options(group) for group in optimizer.param_groups]
    schedule = None if scheduler is None else {"class": _path(scheduler), "state": scheduler.state_dict()}
    return copy.deepcopy({"class": _path(optimizer), "groups": groups, "schedule": schedule})


def _options(group: dict[str, Any]) -> dict[str, Any]:
    """The options of a parameter group."""
    return {name: value for name, value in group.items() if name != "params"}


def _unrecorded(state: dict[str, Any], schedules: list[Any], now: dict[str, Any]) -> dict[str, Any]:
    """Reconstructs the record that a checkpoint of an earlier version lacks, as far as its states tell it."""
    groups = [_options(group) | {"lr": group.get("initial_lr", group["lr"])} for group in state["param_groups"]]
    ours = now["schedule"]
    same = bool(schedules) and ours is not None and schedules[0].keys() == ours["state"].keys()
    return {"class": now["class"], "groups": groups, "schedule": ours if same else None}


def _scheduler_of(trainer: Trainer, optimizer: Optimizer) -> Any:
    of_optimizer = (each.scheduler for each in trainer.lr_scheduler_configs)
    return next((each for each in of_optimizer if each.optimizer is optimizer), None)


def _path(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _optimizer_state(
    saved: dict[str, Any], then: dict[str, Any], now: dict[str, Any], optimizer: Optimizer
) -> dict[str, Any]:
    """Returns the state to load into an optimiser."""
    own = optimizer.state_dict()
    if then["class"] != now["class"]:
        rank_zero_info(
            f"the optimiser is {now['class']}, that of the checkpoint is {then['class']}: it starts with an empty state"
        )
        return own
    sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (saved, own)]
    if sizes[0] != sizes[1]:
        raise CheckpointMismatch(
            f"the optimiser of the checkpoint has groups of {_listed(sizes[0])} parameters, this run has groups of "
            f"{_listed(sizes[1])}: parts that are trained cannot become frozen on a resume, nor the reverse. Resume "
            "with the options of the checkpoint, or start a new run from its weights"
        )
    groups = []
    for group, old, new in zip(saved["param_groups"], then["groups"], now["groups"]):
        groups.append({**merged(group, old, new), "lr": _lr(group, old, new, then, now)})
    return {**saved, "param_groups": groups}


def _lr(group: Any, old: Any, new: Any, then: dict[str, Any], now: dict[str, Any]) -> Any:
    """Returns the learning rate of a group: that of the checkpoint, scaled as the option has changed."""
    if _kind(then) != _kind(now):
        return new["lr"]  # a schedule of another class sets it
    if then["schedule"] is None:
        return merged(group["lr"], old["lr"], new["lr"])
    name = "initial_lr" if old.get("initial_lr") and "initial_lr" in new else "lr"
    return group["lr"] if _same(old[name], new[name]) or not old[name] else group["lr"] * new[name] / old[name]


def _kind(record: dict[str, Any]) -> str | None:
    return record["schedule"] and record["schedule"]["class"]


def _epochs(checkpoint: dict[str, Any]) -> int:
    """How many epochs of the run are over."""
    done: int = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return done


def _scheduler_state(
    saved: dict[str, Any] | None,
    then: dict[str, Any],
    now: dict[str, Any],
    scheduler: Any,
    state: dict[str, Any],
    epochs: int,
) -> dict[str, Any]:
    """Returns the state to load into a schedule, and sets the learning rates in ``state``, the optimiser's."""
    if isinstance(scheduler, RunSchedule):
        return saved if saved is not None and "step" in saved else scheduler.state_dict()  # Recipe.resume_at follows
    if saved is None or _kind(then) != _kind(now):
        return _after(scheduler, epochs, state)
    changed = merged(saved, then["schedule"]["state"], now["schedule"]["state"])
    if _same(changed, saved) or isinstance(scheduler, ReduceLROnPlateau):
        return changed
    return _recomputed(scheduler, changed, state)


def _after(scheduler: LRScheduler, epochs: int, state: dict[str, Any]) -> dict[str, Any]:
    """Moves a new schedule of torch over the epochs that are done."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no step of the optimiser came before
        for _ in range(0 if isinstance(scheduler, ReduceLROnPlateau) else epochs):
            scheduler.step()
    return _with_rates(scheduler, scheduler.state_dict(), state)


def _recomputed(scheduler: Any, changed: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Lets changed options of a schedule act for the epochs that are done too, if it has a closed form."""
    scheduler.load_state_dict(copy.deepcopy(changed))
    if hasattr(scheduler, "_get_closed_form_lr"):
        for group, lr in zip(scheduler.optimizer.param_groups, scheduler._get_closed_form_lr()):
            group["lr"] = lr
        changed = {**changed, "_last_lr": scheduler._get_closed_form_lr()}
        return _with_rates(scheduler, changed, state)
    return changed


def _with_rates(scheduler: Any, changed: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    for group, live in zip(state["param_groups"], scheduler.optimizer.param_groups):
        group.update(_options(live))
    return changed


def _listed(sizes: list[int]) -> str:
    return " and ".join(map(str, sizes))
