"""What the messages of several rooms share."""

from recipes.errors.nearest import nearest

__all__ = ["nearest"]
