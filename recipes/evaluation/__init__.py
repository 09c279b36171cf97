"""What measures: tensors in, numbers out."""

from recipes.evaluation.continual import MEASURES, AccuracyMatrix
from recipes.evaluation.features import Collector, Features, extract, forward
from recipes.evaluation.probes import accuracy, few_label_draws, knn, linear_probe
from recipes.evaluation.transferability import h_score, leave_one_out, leep, log_me

__all__ = [
    "MEASURES",
    "AccuracyMatrix",
    "Collector",
    "Features",
    "accuracy",
    "extract",
    "few_label_draws",
    "forward",
    "h_score",
    "knn",
    "leave_one_out",
    "leep",
    "linear_probe",
    "log_me",
]
