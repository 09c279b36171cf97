"""Training strategies for image models, one LightningModule per method."""

from recipes.bootstrap import BYOL
from recipes.checkpoint import load
from recipes.continual import EWC, SI, DERpp, FeatureExtraction, FineTuning, ICaRL, Joint, LwF, Rehearsal
from recipes.contrastive import InstanceDiscrimination, MoCo, SimCLR
from recipes.distillation import DeiT, TeacherStudent
from recipes.recipe import Recipe
from recipes.semisupervised import MeanTeacher
from recipes.supervised import Supervised
from recipes.transfer import SVM, FineTune, LinearProbe

__all__ = [
    "BYOL",
    "EWC",
    "SI",
    "SVM",
    "DERpp",
    "DeiT",
    "FeatureExtraction",
    "FineTune",
    "FineTuning",
    "ICaRL",
    "InstanceDiscrimination",
    "Joint",
    "LinearProbe",
    "LwF",
    "MeanTeacher",
    "MoCo",
    "Recipe",
    "Rehearsal",
    "SimCLR",
    "Supervised",
    "TeacherStudent",
    "load",
]
