"""Learning one task after the other: with nothing against forgetting, and with."""

from recipes.continual.added_classes import AddedClasses
from recipes.continual.base import ContinualRecipe
from recipes.continual.derpp import DERpp
from recipes.continual.ewc import EWC
from recipes.continual.feature_extraction import FeatureExtraction
from recipes.continual.fine_tuning import FineTuning
from recipes.continual.icarl import ICaRL
from recipes.continual.joint import Joint
from recipes.continual.lwf import LwF
from recipes.continual.rehearsal import Rehearsal
from recipes.continual.si import SI

__all__ = [
    "AddedClasses",
    "DERpp",
    "EWC",
    "ContinualRecipe",
    "FeatureExtraction",
    "FineTuning",
    "ICaRL",
    "Joint",
    "LwF",
    "Rehearsal",
    "SI",
]
