"""A configuration that does what was advised."""

from typing import Any

from recipes.transfer.advisor.rule import STRATEGIES, Advice

LARGEST_BATCH = 64
# The published code of Big Transfer (Kolesnikov et al., 2020, arXiv:1912.11370) takes 500 steps for fewer than 20,000
# images and 10,000 for up to 500,000, with batches of 512. Ours are smaller, so that between the two we take 20 epochs;
# five are the fewest, as FineTune warms up for one.
FEWEST_STEPS, MOST_STEPS, EPOCHS, FEWEST_EPOCHS = 500, 10_000, 20, 5


def plan(advice: Advice, encoder: dict[str, Any], data: dict[str, Any], images: int, seed: int = 0) -> dict[str, Any]:
    """A configuration for ``recipes fit`` that does what was advised.

    Args:
        advice: what to do.
        encoder: ``class_path`` and ``init_args`` of the encoder, with its weights.
        data: the same of the DataModule.
        images: in its training set.
        seed: of the run.

    Returns:
        What the YAML file is to hold.
    """
    batch_size = fitting_batch_size(images)
    per_epoch = images // batch_size
    epochs = fitting_steps(images) // per_epoch
    # small batches, and not much slower steps: the learning rate is not scaled down
    settings = {"encoder": encoder, **STRATEGIES[advice.strategy].settings, "lr_batch_size": None}
    return {
        "seed_everything": seed,
        "model": {"class_path": "recipes.FineTune", "init_args": settings},
        "data": {**data, "init_args": {**data.get("init_args", {}), "batch_size": batch_size}},
        "trainer": {
            "max_epochs": epochs,
            # about five times, the last after the last epoch
            "check_val_every_n_epoch": max(n for n in range(1, epochs // 5 + 2) if epochs % n == 0),
            "log_every_n_steps": min(10, per_epoch),
        },
    }


def fitting_batch_size(images: int) -> int:
    """The largest power of two that is at most 64 and at most the number of images, which is > 0."""
    return min(LARGEST_BATCH, 1 << (images.bit_length() - 1))


def fitting_steps(images: int) -> int:
    """Computes the number of optimiser steps for a number of images: whole epochs, about 500 to 10,000 steps."""
    per_epoch = images // fitting_batch_size(images)
    steps = min(max(EPOCHS * per_epoch, FEWEST_STEPS), MOST_STEPS)
    return max(FEWEST_EPOCHS, round(steps / per_epoch)) * per_epoch
