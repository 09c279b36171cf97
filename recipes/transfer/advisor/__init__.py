"""Which strategy of transfer learning fits an encoder and a set of images: measure, choose, and plan."""

from recipes.transfer.advisor.measurement import (
    MOST_IMAGES,
    Comparison,
    Measurement,
    Scores,
    evenly,
    measure,
    random_log_me,
    training_labels,
)
from recipes.transfer.advisor.planning import FEWEST_EPOCHS, FEWEST_STEPS, fitting_batch_size, fitting_steps, plan
from recipes.transfer.advisor.rule import RULE, STRATEGIES, THRESHOLDS, Advice, Strategy, choose, similar_from

__all__ = [
    "FEWEST_EPOCHS",
    "FEWEST_STEPS",
    "MOST_IMAGES",
    "RULE",
    "STRATEGIES",
    "THRESHOLDS",
    "Advice",
    "Comparison",
    "Measurement",
    "Scores",
    "Strategy",
    "choose",
    "evenly",
    "fitting_batch_size",
    "fitting_steps",
    "measure",
    "plan",
    "random_log_me",
    "similar_from",
    "training_labels",
]
