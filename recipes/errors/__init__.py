"""What the messages of several rooms share."""

from recipes.errors.failures import Diverged, RunFailed
from recipes.errors.nearest import nearest
from recipes.errors.ranges import check_at_least

__all__ = ["Diverged", "RunFailed", "check_at_least", "nearest"]
