"""Optimisation: LARS, parameter groups, and learning-rate schedules that know the length of the run."""

from recipes.optim.groups import NORM_LAYERS, keep_lr_factors, parameter_groups
from recipes.optim.lars import LARS
from recipes.optim.schedules import RunSchedule, WarmupCosine

__all__ = ["LARS", "NORM_LAYERS", "RunSchedule", "WarmupCosine", "keep_lr_factors", "parameter_groups"]
