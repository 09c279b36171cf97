from recipes.errors.failures import Diverged, RunFailed
from recipes.errors.mismatch import CheckpointMismatch
from recipes.errors.nearest import nearest
from recipes.errors.ranges import check_at_least

__all__ = ["CheckpointMismatch", "Diverged", "RunFailed", "check_at_least", "nearest"]
