"""Transfer learning: fine-tuning, and heads on frozen features."""

from recipes.transfer.fine_tune import FineTune

__all__ = ["FineTune"]
