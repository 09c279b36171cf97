import torch
from torch import Tensor
from torch.nn import functional as F

from losses.precision import at_least_float32


def labelled_cross_entropy(
    logits: Tensor,
    label: Tensor,
    everyones: Tensor,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
    share: Tensor | None = None,
) -> Tensor:
    """Cross-entropy, the mean over the labelled images of all devices.

    Devices may have more and fewer labelled images. The mean over devices of what each gets here, which is the one that
    DDP takes of gradients, is the mean over images.

    Args:
        logits: of this device's images, float [B, classes].
        label: int64 [B], their classes; -1 where unlabelled.
        everyones: int64 [devices × B], the labels of all devices; on one device, those given.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
        class_weight: float [classes], how much an image of each class counts, >= 0; the mean is then divided by the sum
            of the weights of the images' classes. None: 1 for all.
        share: float [B], how much of each image's loss counts here, in [0, 1]; it does not change what the mean is
            divided by, so that the losses of several labels of mixed images can be added. None: 1 for all.

    Returns:
        A scalar, float32 or for float64 logits float64; 0 where no image of any device is labelled.
    """
    logits = at_least_float32(logits)
    weight = None if class_weight is None else class_weight.to(logits.dtype)
    each = F.cross_entropy(
        logits, label, weight, ignore_index=-1, label_smoothing=label_smoothing, reduction="none"
    )  # [B], with 0 where unlabelled
    total = each.sum() if share is None else (each * share).sum()
    counts = (everyones >= 0).to(total.dtype)  # not the labelled ones picked out, whose number the host would wait for
    if weight is not None:
        counts = counts * weight[everyones.clamp(min=0)]
    count = counts.sum()
    return total / (torch.where(count > 0, count, 1) * (len(label) / len(everyones)))


def mixed_cross_entropy(
    logits: Tensor,
    label: Tensor,
    partner: Tensor,
    share: Tensor | None,
    everyones: Tensor,
    label_smoothing: float = 0.0,
    class_weight: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of mixed images (mixup, CutMix) with the labels of both images of each mix.

    Args:
        logits: of this device's mixed images, float [B, classes].
        label: int64 [B], the classes of the images themselves; -1 where unlabelled.
        partner: int64 [B], the classes of the images that are mixed into them; -1 where unlabelled.
        share: float [B], how much of each mixed image is the image itself, in [0, 1]. None: the images are not mixed.
        everyones: int64 [devices × B], the labels of all devices.
        label_smoothing: share of the target that is spread evenly over all classes, in [0, 1).
        class_weight: float [classes], see ``labelled_cross_entropy``.

    Returns:
        A scalar: the mean of share × loss with ``label`` + (1 - share) × loss with ``partner``.
    """
    loss = labelled_cross_entropy(logits, label, everyones, label_smoothing, class_weight, share)
    if share is None:
        return loss
    return loss + labelled_cross_entropy(logits, partner, everyones, label_smoothing, class_weight, 1 - share)


def balanced_class_weight(label: Tensor, num_classes: int) -> Tensor:
    """Weights that give every class the same influence: images / (classes × images of the class).

    Args:
        label: int64 [N], of all training images; -1 where unlabelled.
        num_classes: how many classes there are, whether or not they occur.

    Returns:
        float64 [classes]. A class without images is weighed like one with a single image.
    """
    images = torch.bincount(label[label >= 0], minlength=num_classes).double()
    return images.sum() / (num_classes * images.clamp(min=1))
