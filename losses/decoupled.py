import torch
from torch import Tensor
from torch.nn import functional as F

from losses.feature import FeatureLoss
from losses.precision import at_least_float32
from losses.temperature import check_temperature


class DecoupledSoftTarget(FeatureLoss):
    """Soft targets in two parts, each with a weight of its own (DKD: Zhao et al., 2022, arXiv:2203.08679).

    The Kullback-Leibler divergence of a student's softened outputs from its teacher's is that of two probabilities,
    the target class or any other, plus (1 - p of the target) times that of the probabilities among the other classes.
    A confident teacher therefore suppresses the second part. Here the two are weighted independently: target_weight
    times the first plus non_target_weight times the second, the sum over the classes, the mean over the labelled images
    of all devices.
    For layers ``logits``. Computed in float32, or float64 for float64 input, from differences of logits: no logarithm
    of a probability is computed.

    Published code lets the weight of this loss rise from 0 over the first 20 epochs; that is not done here.

    Args:
        temperature: temperature T by which all logits are divided, > 0.
        target_weight: weight of the target class against all other classes, >= 0.
        non_target_weight: weight of the probabilities among the other classes, >= 0.
        scale_t2: whether to multiply the loss by T², so that the gradient keeps its size when T changes.

    Raises:
        ValueError: if the temperature is not a positive number or a weight is negative.
    """

    needs = ("label",)
    compares_images = True  # devices may have more and fewer labelled images, and the mean is over those of all

    def __init__(
        self,
        temperature: float = 4.0,  # these four: published code for CIFAR-100
        target_weight: float = 1.0,
        non_target_weight: float = 8.0,
        scale_t2: bool = True,
    ) -> None:
        super().__init__()
        for name, weight in (("target_weight", target_weight), ("non_target_weight", non_target_weight)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} is {weight}: it must be at least 0")
        self.temperature = check_temperature(temperature, usual="1 to 20")
        self.target_weight = target_weight
        self.non_target_weight = non_target_weight
        self.scale_t2 = scale_t2

    def forward(self, student: Tensor, teacher: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        """Computes the loss of B images, those of all devices.

        Args:
            student: logits [B, classes], of at least 2 classes.
            teacher: logits [B, classes]; they get no gradient.
            label: int64 [B]; -1 for unlabelled images, which are skipped.

        Returns:
            A scalar; 0 where no image is labelled.

        Raises:
            ValueError: if the shapes do not match.
        """
        if student.ndim != 2 or student.shape != teacher.shape or student.shape[1] < 2:
            shapes = f"{list(student.shape)} of the student, {list(teacher.shape)} of the teacher"
            raise ValueError(f"logits are {shapes}: both must be [B, classes], of the same 2 or more classes")
        our_odds, ours = _apart(at_least_float32(student) / self.temperature, label)
        their_odds, theirs = _apart(at_least_float32(teacher.detach()) / self.temperature, label)
        each = self.target_weight * _binary_divergence(our_odds, their_odds)
        each = each + self.non_target_weight * F.kl_div(
            ours.log_softmax(1), theirs.log_softmax(1), reduction="none", log_target=True
        ).sum(1)
        labelled = label >= 0
        loss = each.where(labelled, 0).sum() / labelled.sum().clamp(min=1)
        return loss * self.temperature**2 if self.scale_t2 else loss


def _apart(logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """The log-odds of the target class against all others [B], and the logits of the others [B, classes - 1]."""
    target = label.clamp(min=0)[:, None]
    place = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, place + (place >= target))
    return logits.gather(1, target)[:, 0] - others.logsumexp(1), others


def _binary_divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    """KL(theirs ‖ ours) of two probabilities that add up to 1, by their log-odds."""
    p, log_p, log_q = theirs.sigmoid(), F.logsigmoid(theirs), F.logsigmoid(-theirs)
    return p * (log_p - F.logsigmoid(ours)) + (-theirs).sigmoid() * (log_q - F.logsigmoid(-ours))
