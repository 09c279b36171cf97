"""How far the probabilities of a classifier can be trusted, and how a temperature changes them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

TEMPERATURES = (1.0, 4.0, 20.0, 40.0)
BINS = 15  # of the calibration error (Guo et al., 2017, arXiv:1706.04599)
NETWORKS = ("teacher", "student")
_RANGE = 0.01, 100.0  # of temperatures that are tried


class Answers(NamedTuple):
    """What teacher and student say of a set of labelled images.

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
    """How often a classifier is right, by how sure it is: the highest probability, in bins of equal width.

    Attributes:
        count: images of each bin, int64 [bins].
        accuracy: share of them that are right; not a number where there are none.
        confidence: mean of their highest probability; not a number where there are none.
    """

    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count
    accuracy: np.ndarray
    confidence: np.ndarray


def comparison(test: Answers, temperatures: Mapping[str, float], val_images: int) -> dict[str, Any]:
    """Measures teacher and student.

    Args:
        test: what they say of the test images.
        temperatures: of ``teacher`` and ``student``, that suit other images best; may be empty.
        val_images: how many of these there were.

    Returns:
        What ``distillation.json`` holds.
    """
    said = {name: getattr(test, name) for name in NETWORKS}
    errors: dict[str, dict[str, float | None]] = {}
    for name, logits in said.items():
        scaled = logits / temperatures[name] if name in temperatures else None
        errors[name] = {
            "before": calibration_error(logits, test.label),
            "after": None if scaled is None else calibration_error(scaled, test.label),
        }
    return {
        "split": "test",
        "images": len(test.label),
        "agreement": (test.teacher.argmax(1) == test.student.argmax(1)).double().mean().item(),
        "accuracy": {name: (x.argmax(1) == test.label).double().mean().item() for name, x in said.items()},
        "calibration_error": {"bins": BINS, **errors},
        "fitted_temperature": {"validation_images": val_images, **{name: temperatures.get(name) for name in NETWORKS}},
        "teacher_entropy_bits": {f"{t:g}": entropy(test.teacher, t).mean().item() for t in TEMPERATURES},
    }


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """The entropy of softened probabilities, in bits: [N], from 0 to log2(classes).

    Args:
        logits: [N, classes].
        temperature: T, > 0, that the logits are divided by.
    """
    log_p = F.log_softmax(logits / temperature, dim=1)
    return -(log_p.exp() * log_p).sum(1) / math.log(2)


def best_temperature(logits: Tensor, label: Tensor) -> float:
    """The temperature, from 0.01 to 100, that gives the labels the highest likelihood (Guo et al., 2017).

    Where every image is right the likelihood has no maximum, and the temperature is one at which it is 1 in float64.

    Args:
        logits: float64 [N, classes], N > 0.
        label: int64 [N].
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return F.cross_entropy(logits / math.exp(log_t), label).item()

    bounds = math.log(_RANGE[0]), math.log(_RANGE[1])
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-8}).x)


def calibration_error(logits: Tensor, label: Tensor) -> float:
    """The expected calibration error in [0, 1]: by how much confidence and accuracy differ in a bin, in the mean.

    Args:
        logits: [N, classes].
        label: int64 [N].
    """
    return multiclass_calibration_error(logits.softmax(1), label, logits.shape[1], n_bins=BINS, norm="l1").item()


def reliability(logits: Tensor, label: Tensor) -> Reliability:
    """Accuracy and confidence in the bins of the calibration error.

    Args:
        logits: [N, classes].
        label: int64 [N].
    """
    confidence, said = logits.softmax(1).max(1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    count, sure, right = (
        torch.bincount(place, weights, BINS).numpy() for weights in (None, confidence, (said == label).double())
    )
    with np.errstate(invalid="ignore"):
        return Reliability(count, right / count, sure / count)
