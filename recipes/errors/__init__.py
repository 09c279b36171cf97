"""What the messages of several rooms share."""

from recipes.errors.mismatch import CheckpointMismatch
from recipes.errors.nearest import nearest
from recipes.errors.ranges import check_at_least

__all__ = ["CheckpointMismatch", "check_at_least", "nearest"]
