"""Transfer learning: fine-tuning, and heads on frozen features."""

from recipes.transfer.fine_tune import FineTune
from recipes.transfer.linear_probe import LinearProbe
from recipes.transfer.svm import SVM

__all__ = ["FineTune", "LinearProbe", "SVM"]
