import torch
from torch import Tensor
from torch.nn import functional as F


def labelled_cross_entropy(logits: Tensor, label: Tensor, everyones: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy, the mean over the labelled images of all devices.

    Devices may have more and fewer labelled images. The mean over devices of what each gets here, which is the one that
    DDP takes of gradients, is the mean over images.

    Args:
        logits: of this device's images, float [B, classes].
        label: int64 [B], their classes; -1 where unlabelled.
        everyones: int64 [devices × B], the labels of all devices; on one device, those given.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).

    Returns:
        A scalar, float32 or for float64 logits float64; 0 where no image of any device is labelled.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    total = F.cross_entropy(logits, label, ignore_index=-1, label_smoothing=label_smoothing, reduction="sum")
    labelled = (everyones >= 0).sum().clamp(min=1).to(total.dtype)
    return total / (labelled * (len(label) / len(everyones)))
