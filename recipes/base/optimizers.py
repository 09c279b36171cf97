"""Creates the optimiser and the schedule of a run."""

import math
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau as Plateau

from recipes.base.measures import check_monitor
from recipes.optim import RunSchedule, keep_lr_factors

if TYPE_CHECKING:
    from recipes.base.recipe import Recipe


def optimizer_and_schedule(recipe: "Recipe") -> OptimizerLRScheduler:
    """Creates a recipe's optimiser on its parameter groups, and its schedule over the whole run."""
    optimizer = _created("optimizer", recipe.optimizer, recipe.parameter_groups())
    scale = 1.0 if recipe.lr_batch_size is None else recipe.global_batch_size / recipe.lr_batch_size
    for group in optimizer.param_groups:
        group["lr"] *= scale * group.get("lr_factor", 1.0)
    if recipe.scheduler is None:
        return optimizer
    scheduler = _created("scheduler", recipe.scheduler, optimizer)
    keep_lr_factors(scheduler)
    if not isinstance(scheduler, RunSchedule):
        every_epoch: Any = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, Plateau):
            every_epoch |= _when_measured(recipe, scheduler)
        return {"optimizer": optimizer, "lr_scheduler": every_epoch}
    total, trainer = recipe.total_steps, recipe.trainer
    if math.isinf(trainer.num_training_batches):  # with max_steps alone, nobody has asked for the loader yet
        trainer.fit_loop.setup_data()
    scheduler.start(total, recipe.steps_per_epoch)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _when_measured(recipe: "Recipe", scheduler: Plateau) -> dict[str, Any]:
    """How Lightning calls a schedule that monitors a measure: after each epoch that has a new value of it."""
    monitor = getattr(scheduler, "monitor", None)  # Lightning's class has one, torch's has not
    if monitor is None:
        raise ValueError(
            "the scheduler ReduceLROnPlateau of torch monitors nothing: set model.scheduler to "
            "lightning.pytorch.cli.ReduceLROnPlateau and model.scheduler.monitor to a measure, such as val/loss"
        )
    check_monitor(recipe, monitor, type(scheduler).__name__)
    options: dict[str, Any] = {"monitor": monitor}
    if monitor.startswith("train/"):
        return options
    every: int | None = recipe.trainer.check_val_every_n_epoch
    return options | ({"strict": False} if every is None else {"frequency": every})


def _created(name: str, create: Any, argument: Any) -> Any:
    """Calls an injected factory; torch's error for an argument out of its range becomes one that names the option."""
    try:
        return create(argument)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"the {name} cannot be created: {reason}. Change model.{name}") from error
