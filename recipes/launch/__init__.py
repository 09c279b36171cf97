"""Starts runs: variants × seeds, several at a time, and goes on after a kill."""

from recipes.launch.grid import Grid, Job
from recipes.launch.runner import KeptRuns, fit, measure

__all__ = ["Grid", "Job", "KeptRuns", "fit", "measure"]
