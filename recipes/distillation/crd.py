import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from losses import FeatureLoss, unit
from losses.temperature import check_temperature
from recipes.augment import integers
from recipes.nn import MemoryBank, check_momentum

NegativesOf = Literal["other-classes", "all"]

_NEVER_SEEN = -2  # in place of the label of a training image


class ContrastiveDistillation(FeatureLoss):
    """Contrastive representation distillation, CRD (Tian et al., 2020, arXiv:1910.10699).

    Two linear layers embed the outputs of the student's and of the teacher's layer as vectors of length one. The
    student's embedding of an image is trained to identify the teacher's embedding of the same image among those of m
    negatives, and the teacher's embedding to identify the student's. Each of the two terms is
    -log h(own) - Σ log(1 - h(negative)), summed over the m negatives (Equation 18), where h = P / (P + m / n) and
    P = exp(student · teacher / τ) / Z over n training images. As in the published code, Z is estimated on the first
    batch and then constant, with one value for each term. The loss is the sum of the two terms, averaged over the
    images of the batch.

    Two memory banks hold one embedding per training image, one bank for the student and one for the teacher. They are
    updated after the backward pass. All images of a batch share the drawn negatives; the published code draws negatives
    for each image, which has the same expectation. An image skips itself among the drawn images and, by default, all
    images of its class; m is the number that remains. The class of a training image is known after its first batch.
    Until then its row is a random vector and a negative for all other images. An image without a label always is one.

    Maps [C, H, W] are averaged over their positions, and tokens [N, F] over the tokens.

    Args:
        negatives: number of images that are drawn as negatives for a batch, >= 1. An image may be drawn twice.
        negatives_of: drawn images that count as negatives for an image: those of ``other-classes``, or ``all`` except
            the image itself. Images without a label use all.
        embedding_dim: length of the embeddings, >= 1.
        temperature: softmax temperature τ for the similarities, > 0.
        bank_momentum: share of the last embedding that is kept in a bank, in [0, 1].

    Attributes:
        log_z: log Z of the student's and of the teacher's embeddings [2]; -inf before the first batch.

    Raises:
        ValueError: if a number or a name is none of these.
    """

    needs = ("label", "index", "key")
    compares_images = True

    student_bank: "_LabelledBank"
    teacher_bank: MemoryBank
    log_z: Tensor

    def __init__(
        self,
        negatives: int = 16384,  # published code, --nce_k
        negatives_of: NegativesOf = "other-classes",  # published code for CIFAR-100, CIFAR100InstanceSample
        embedding_dim: int = 128,  # published code, --feat_dim
        temperature: float = 0.07,  # published code, --nce_t
        bank_momentum: float = 0.5,  # published code, --nce_m
    ) -> None:
        super().__init__()
        if negatives < 1:
            raise ValueError(f"negatives is {negatives}: it must be at least 1")
        if negatives_of not in ("other-classes", "all"):
            raise ValueError(f"negatives_of is {negatives_of!r}: it must be 'other-classes' or 'all'")
        if embedding_dim < 1:
            raise ValueError(f"embedding_dim is {embedding_dim}: it must be at least 1")
        check_momentum(bank_momentum, "bank_momentum")
        self.negatives = negatives
        self.negatives_of = negatives_of
        self.embedding_dim = embedding_dim
        self.temperature = check_temperature(temperature)
        self.bank_momentum = bank_momentum
        self._z_is_known = False
        self._seen: tuple[Tensor, ...] | None = None

    def build(self, student: Sequence[int], teacher: Sequence[int], images: int) -> None:
        """Creates the two embedding layers and the banks, with one row for each training image."""
        self.student_embedding = nn.Linear(_width(student), self.embedding_dim)
        self.teacher_embedding = nn.Linear(_width(teacher), self.embedding_dim)
        self.student_bank = _LabelledBank(images, self.embedding_dim, self.bank_momentum)
        self.teacher_bank = MemoryBank(images, self.embedding_dim, self.bank_momentum)
        self.teacher_bank.features = self.teacher_bank.features.flip(0)  # an image is to begin with another vector here
        self.register_buffer("log_z", torch.full((2,), -torch.inf))

    def forward(self, student: Tensor, teacher: Tensor, **needed: Any) -> Tensor:
        """Compares the outputs of the layers for the B images of all devices.

        Args:
            student: [B, F], [B, N, F] or [B, C, H, W].
            teacher: the same, with widths of its own.
            **needed: ``label``, ``index`` and ``key`` of these images.

        Returns:
            A scalar.
        """
        label, index = needed["label"], needed["index"]
        of_student = _embedded(self.student_embedding, student)  # [B, D]
        of_teacher = _embedded(self.teacher_embedding, teacher.detach())
        drawn = integers(needed["key"], self.negatives, len(self.student_bank))  # the same on every device
        counted = drawn != index[:, None]  # [B, negatives]
        if self.negatives_of == "other-classes":
            of_drawn = self.student_bank.label[drawn]
            counted &= (of_drawn != label[:, None]) | (of_drawn < 0)
        sides = [  # embeddings and log(P Z) of each side: of the own image [B], and of the negatives [B, negatives]
            self._logits(of_student, self.teacher_bank.features, index, drawn),
            self._logits(of_teacher, self.student_bank.features, index, drawn),
        ]
        self._estimate_z(sides, counted)
        self._seen = index, of_student.detach(), of_teacher.detach(), label
        log_noise = (counted.sum(1).to(of_student.dtype) / len(self.student_bank)).log()  # log(m / n), [B]
        loss = of_student.new_zeros(())
        for (own, others), log_z in zip(sides, self.log_z):
            odds = -log_z - log_noise  # log(P / (m / n)) but for the logit; h is the sigmoid of the whole
            missed = F.softplus(-(own + odds))  # -log h
            found = F.softplus(others + odds[:, None]).where(counted, 0)  # -log(1 - h)
            loss = loss + (missed + found.sum(1)).mean()
        return loss

    def after_backward(self) -> None:
        """Moves the rows of the images of the batch."""
        if self._seen is not None:
            index, of_student, of_teacher, label = self._seen
            self.student_bank.update(index, of_student)
            self.student_bank.label[index] = label
            self.teacher_bank.update(index, of_teacher)
            self._seen = None

    def _logits(self, embedding: Tensor, bank: Tensor, index: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(embedding.device.type, enabled=False):
            scaled = embedding / self.temperature
            return (scaled * bank[index]).sum(1), scaled @ bank[drawn].T

    @torch.no_grad()
    def _estimate_z(self, sides: list[tuple[Tensor, Tensor]], counted: Tensor) -> None:
        """Sets Z to n times the mean of exp(logit) over the compared embeddings, unless Z is known."""
        if not self._z_is_known and not self.log_z.isfinite().all():  # asks the device once, as that makes it wait
            for place, (own, others) in enumerate(sides):
                logits = torch.cat([own, others[counted]])
                self.log_z[place] = logits.logsumexp(0) + math.log(len(self.student_bank) / len(logits))
        self._z_is_known = True


class _LabelledBank(MemoryBank):
    """A bank that knows the classes of the images too: ``label`` int64 [N], -1 where there is none."""

    label: Tensor

    def allocate(self, size: int) -> None:
        super().allocate(size)
        self.register_buffer("label", torch.full((size,), _NEVER_SEEN, device=self.features.device))


def _embedded(embedding: nn.Linear, x: Tensor) -> Tensor:
    pooled = x.mean((2, 3)) if x.ndim == 4 else x.mean(1) if x.ndim == 3 else x
    return unit(embedding(pooled.to(embedding.weight.dtype)))


def _width(shape: Sequence[int]) -> int:
    """How long the vectors are that ``_embedded`` makes of what a layer gives for an image."""
    if len(shape) not in (1, 2, 3):
        raise ValueError(
            f"a layer gives {list(shape)} for an image: contrastive distillation takes features [F], tokens [N, F] or "
            "maps [C, H, W]"
        )
    return shape[0] if len(shape) == 3 else shape[-1]
