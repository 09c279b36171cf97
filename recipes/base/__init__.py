"""What every recipe inherits, and how a run is loaded again."""

from recipes.base.checkpoint import load
from recipes.base.classifier import Classifier
from recipes.base.recipe import Recipe

__all__ = ["Classifier", "Recipe", "load"]
