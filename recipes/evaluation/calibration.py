"""Calibration of a classifier: confidence against accuracy, before and after temperature scaling."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

TEMPERATURES = (1.0, 4.0, 20.0, 40.0)
BINS = 15  # of the calibration error (Guo et al., 2017, arXiv:1706.04599)
NETWORKS = ("teacher", "student")
_RANGE = 0.01, 100.0  # temperatures that are tried


class Predictions(NamedTuple):
    """The logits of teacher and student for a set of labelled images.

    Attributes:
        teacher: logits float64 [N, classes].
        student: the same.
        label: int64 [N].
        index: int64 [N], the position of each image in its dataset.
    """

    teacher: Tensor
    student: Tensor
    label: Tensor
    index: Tensor  # type: ignore[assignment]  # hides tuple.index


class Reliability(NamedTuple):
    """Accuracy by confidence (the highest probability), in bins of equal width.

    Attributes:
        count: number of images in each bin, int64 [bins].
        accuracy: share of correctly classified images; not a number for an empty bin.
        confidence: mean of the highest probability; not a number for an empty bin.
    """

    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count
    accuracy: np.ndarray
    confidence: np.ndarray


def comparison(test: Predictions, temperatures: Mapping[str, float], val_images: int) -> dict[str, Any]:
    """Measures teacher and student.

    Args:
        test: logits of both networks for the test images.
        temperatures: best temperatures of ``teacher`` and ``student`` on the validation images; may be empty.
        val_images: number of these validation images.

    Returns:
        The content of ``distillation.json``.
    """
    predicted = {name: getattr(test, name) for name in NETWORKS}
    errors: dict[str, dict[str, float | None]] = {}
    for name, logits in predicted.items():
        scaled = logits / temperatures[name] if name in temperatures else None
        errors[name] = {
            "before": calibration_error(logits, test.label),
            "after": None if scaled is None else calibration_error(scaled, test.label),
        }
    return {
        "split": "test",
        "images": len(test.label),
        "agreement": (test.teacher.argmax(1) == test.student.argmax(1)).double().mean().item(),
        "accuracy": {name: (x.argmax(1) == test.label).double().mean().item() for name, x in predicted.items()},
        "calibration_error": {"bins": BINS, **errors},
        "fitted_temperature": {"validation_images": val_images, **{name: temperatures.get(name) for name in NETWORKS}},
        "teacher_entropy_bits": {f"{t:g}": entropy(test.teacher, t).mean().item() for t in TEMPERATURES},
    }


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Computes the entropy of softened probabilities, in bits: [N], from 0 to log2(classes).

    Args:
        logits: [N, classes].
        temperature: divisor T of the logits, > 0.
    """
    log_p = F.log_softmax(logits / temperature, dim=1)
    return -(log_p.exp() * log_p).sum(1) / math.log(2)


def best_temperature(logits: Tensor, label: Tensor) -> float:
    """Finds the temperature, from 0.01 to 100, with the highest likelihood of the labels (Guo et al., 2017).

    If all images are classified correctly, the likelihood has no maximum: the temperature makes it 1 in float64.

    Args:
        logits: float64 [N, classes], N > 0.
        label: int64 [N].
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return F.cross_entropy(logits / math.exp(log_t), label).item()

    bounds = math.log(_RANGE[0]), math.log(_RANGE[1])
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)


class CalibrationError(Metric):
    """Expected calibration error in [0, 1]: the mean over images of |confidence - accuracy| of the bin.

    The confidence is the highest probability. Bins are those of Guo et al. (2017, arXiv:1706.04599): ``BINS`` of equal
    width, each with its upper bound, so that a confidence of exactly 1 is in the last bin.

    Args:
        **options: of ``torchmetrics.Metric``.
    """

    count: Tensor
    confidence: Tensor
    right: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in ("count", "confidence", "right"):  # sums over the images of each bin
            self.add_state(name, torch.zeros(BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, label: Tensor) -> None:
        """Adds a batch of logits [B, classes] and labels [B], -1 where unlabelled."""
        confidence, predicted = logits.double().softmax(1).max(1)
        place = ((confidence * BINS).ceil().long() - 1).clamp(0, BINS - 1)
        labelled = (label >= 0).to(self.count)
        self.count.index_add_(0, place, labelled)
        self.confidence.index_add_(0, place, confidence.to(labelled) * labelled)
        self.right.index_add_(0, place, (predicted == label) * labelled)

    def compute(self) -> Tensor:
        """Returns the error; NaN without a labelled image."""
        return (self.confidence - self.right).abs().sum() / self.count.sum()


def calibration_error(logits: Tensor, label: Tensor) -> float:
    """Computes the calibration error, see ``CalibrationError``.

    Args:
        logits: [N, classes].
        label: int64 [N].
    """
    return _measured(logits, label).compute().item()


def reliability(logits: Tensor, label: Tensor) -> Reliability:
    """Computes accuracy and confidence in the bins of the calibration error.

    Args:
        logits: [N, classes].
        label: int64 [N].
    """
    sums = _measured(logits, label)
    count, sure, right = (part.cpu().numpy() for part in (sums.count, sums.confidence, sums.right))
    with np.errstate(invalid="ignore"):
        return Reliability(count.astype(np.int64), right / count, sure / count)


def _measured(logits: Tensor, label: Tensor) -> CalibrationError:
    metric = CalibrationError(sync_on_compute=False).to(logits.device)  # the first device alone has all logits
    metric.update(logits, label)
    return metric
