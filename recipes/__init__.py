"""Training strategies for image models, one LightningModule per method."""

from recipes.bootstrap import BYOL
from recipes.checkpoint import load
from recipes.contrastive import InstanceDiscrimination, MoCo, SimCLR
from recipes.recipe import Recipe
from recipes.semisupervised import MeanTeacher
from recipes.supervised import Supervised
from recipes.transfer import FineTune

__all__ = [
    "BYOL",
    "FineTune",
    "InstanceDiscrimination",
    "MeanTeacher",
    "MoCo",
    "Recipe",
    "SimCLR",
    "Supervised",
    "load",
]
