"""Training strategies for image models, one LightningModule per method."""

from recipes.base import Recipe, load
from recipes.base.moved import keep_old_names
from recipes.bootstrap import BYOL
from recipes.continual import EWC, SI, DERpp, FeatureExtraction, FineTuning, ICaRL, Joint, LwF, Rehearsal
from recipes.contrastive import InstanceDiscrimination, MoCo, SimCLR
from recipes.distillation import DeiT, TeacherStudent
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

keep_old_names()
