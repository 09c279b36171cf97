from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy


def accuracy(prediction: Tensor, label: Tensor, num_classes: int) -> float:
    """The share of images [N] whose predicted class is right."""
    return multiclass_accuracy(prediction, label, num_classes, average="micro").item()
