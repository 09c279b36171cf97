"""Which strategy of transfer learning fits an encoder and a set of images: measure, choose, and plan."""

from recipes.transfer.advisor.measurement import Measurement, Scores, measure, training_labels
from recipes.transfer.advisor.planning import FEWEST_EPOCHS, FEWEST_STEPS, fitting_batch_size, fitting_steps, plan
from recipes.transfer.advisor.rule import RULE, STRATEGIES, THRESHOLDS, Advice, Strategy, choose

__all__ = [
    "FEWEST_EPOCHS",
    "FEWEST_STEPS",
    "RULE",
    "STRATEGIES",
    "THRESHOLDS",
    "Advice",
    "Measurement",
    "Scores",
    "Strategy",
    "choose",
    "fitting_batch_size",
    "fitting_steps",
    "measure",
    "plan",
    "training_labels",
]
