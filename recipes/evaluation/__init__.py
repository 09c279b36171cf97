"""What measures: tensors in, numbers out."""

from recipes.evaluation.classification import accuracy
from recipes.evaluation.continual import MEASURES, AccuracyMatrix
from recipes.evaluation.features import Collector, Features, extract, forward
from recipes.evaluation.few_labels import few_label_draws
from recipes.evaluation.linear import linear_probe
from recipes.evaluation.neighbours import knn, leave_one_out
from recipes.evaluation.stage_reader import StageReader, quiet_trainer
from recipes.evaluation.svm import SVMFit, fit_svm
from recipes.evaluation.transferability import h_score, leep, log_me

__all__ = [
    "MEASURES",
    "AccuracyMatrix",
    "Collector",
    "Features",
    "SVMFit",
    "StageReader",
    "accuracy",
    "extract",
    "few_label_draws",
    "fit_svm",
    "forward",
    "h_score",
    "knn",
    "leave_one_out",
    "leep",
    "linear_probe",
    "log_me",
    "quiet_trainer",
]
