"""What the messages of several rooms share."""

from recipes.errors.nearest import nearest
from recipes.errors.ranges import check_at_least

__all__ = ["check_at_least", "nearest"]
