"""States which tasks a run that is shorter than its sequence does not train."""

from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

from recipes.base.position import steps_between

if TYPE_CHECKING:
    from recipes.continual.base import ContinualRecipe


def planned(recipe: "ContinualRecipe") -> str | None:
    """Names the tasks that ``max_epochs`` and ``max_steps`` leave no time for; None if there is time for all.

    Args:
        recipe: at the start of training, with its present task begun.
    """
    trainer, per_task = recipe.trainer, recipe.data.epochs_per_task
    all_epochs, all_tasks = sum(per_task), len(per_task)
    limits, finished = [], all_tasks
    if trainer.max_epochs not in (None, -1) and trainer.max_epochs < all_epochs:
        limits.append(f"max_epochs is {trainer.max_epochs}")
        finished = sum(end <= trainer.max_epochs for end in accumulate(per_task))
    if (by_steps := _finished_by_steps(recipe)) < all_tasks:
        limits.append(f"max_steps is {trainer.max_steps}")
        finished = min(finished, by_steps)
    if finished == all_tasks:
        return None
    return (
        f"{' and '.join(limits)}, and the {all_tasks} tasks take {all_epochs} epochs: the run stops before "
        f"{_named(finished, all_tasks)} {'is' if finished + 1 == all_tasks else 'are'} trained to the end"
    )


def untrained(begun: int, ended: int, tasks: int) -> str | None:
    """Names the tasks that are not trained to their end; None if all are.

    Args:
        begun: how many tasks have begun.
        ended: how many are over.
        tasks: how many there are.
    """
    if ended == tasks:
        return None
    parts = [f"{_named(ended, begun)} not to the end"] if begun > ended else []
    parts += [f"{_named(begun, tasks)} not at all"] if tasks > begun else []
    return f"{ended} of {tasks} tasks trained: {', '.join(parts)}"


def _finished_by_steps(recipe: "ContinualRecipe") -> int:
    """How many tasks are over when ``max_steps`` is reached; all without it."""
    trainer, ends = recipe.trainer, list(accumulate(recipe.data.epochs_per_task))
    if trainer.max_steps == -1:
        return len(ends)
    later = [steps_between(trainer, *epochs) for epochs in pairwise(ends[recipe.task :])]
    needed = accumulate(later, initial=recipe.steps_left)
    return recipe.task + sum(steps <= trainer.max_steps - trainer.global_step for steps in needed)


def _named(first: int, stop: int) -> str:
    """Names the tasks from ``first`` on and before ``stop``, both counted from 0."""
    return f"task {stop}" if first + 1 == stop else f"tasks {first + 1} to {stop}"
