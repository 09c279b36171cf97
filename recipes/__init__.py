"""Training strategies for image models, one LightningModule per method."""

from recipes.checkpoint import load
from recipes.contrastive import SimCLR
from recipes.recipe import Recipe
from recipes.supervised import Supervised

__all__ = ["Recipe", "SimCLR", "Supervised", "load"]
