from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from losses.temperature import check_temperature


class SoftTarget(nn.Module):
    """Cross-entropy of a student with the softened outputs of its teacher (Hinton et al., 2015, arXiv:1503.02531).

    Both are softened by the temperature T (Section 2): -Σ softmax(t/T) log softmax(s/T), the sum over the classes, the
    mean over the images. It exceeds the Kullback-Leibler divergence by the teacher's entropy, which has no gradient:
    the gradient with respect to s, times T², is T (softmax(s/T) - softmax(t/T)) / B, which vanishes at equal logits.

    Computed in float32, or float64 for float64 input, a few images at a time. Nothing is stored that grows with images
    times classes, but both logits and the gradient, each in its own precision.

    Args:
        temperature: temperature T, > 0 (4: published code of Tian et al., 2020, arXiv:1910.10699). A schedule may set
            the attribute between calls.
        scale_t2: whether to multiply the loss by T², so that the gradient keeps its size when T changes (Section 2).

    Raises:
        ValueError: if the temperature is not a positive number.
    """

    def __init__(self, temperature: float = 4.0, scale_t2: bool = True) -> None:
        super().__init__()
        self.temperature = temperature
        self.scale_t2 = scale_t2

    @property
    def temperature(self) -> float:
        """T, a positive number."""
        return self._temperature

    @temperature.setter
    def temperature(self, temperature: float) -> None:
        self._temperature = check_temperature(temperature, usual="1 to 20")

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Computes the loss of B images.

        A class whose logits are -inf in both is skipped. Where only the teacher's is -inf, it has probability 0 in
        the target; where only the student's is, the loss is about 1e38 times what it has in the target, or inf.

        Args:
            student_logits: float [B, classes].
            teacher_logits: float [B, classes]; they get no gradient.

        Returns:
            A scalar.

        Raises:
            ValueError: if the shapes do not match.
        """
        if student_logits.ndim != 2 or student_logits.shape != teacher_logits.shape:
            shapes = f"{list(student_logits.shape)} of the student, {list(teacher_logits.shape)} of the teacher"
            raise ValueError(f"logits are {shapes}: both must be [B, classes], for the same images and classes")
        weight = self.temperature**2 if self.scale_t2 else 1.0
        return _cross_entropy(student_logits, teacher_logits.detach(), self.temperature, weight)


@torch.compiler.disable  # a compiler would unroll the loop over the tiles
def _cross_entropy(student: Tensor, teacher: Tensor, temperature: float, weight: float) -> Tensor:
    return _Softened.apply(student, teacher, temperature, weight)


class _Softened(Function):
    """Differentiable once. For half-precision logits, it recomputes probabilities, since rounding loses them."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float, weight: float) -> Tensor:
        total = torch.zeros((), dtype=_wide(student, teacher), device=student.device)
        gradient = torch.empty_like(student) if student.dtype == total.dtype and ctx.needs_input_grad[0] else None
        for rows in _tiles(student):
            target = _softened(teacher[rows], total.dtype, temperature).softmax(1)
            ours = _softened(student[rows], total.dtype, temperature)
            log_p = ours.log_softmax(1).clamp_(min=torch.finfo(total.dtype).min)  # 0 · -inf would be nan
            total += log_p.mul_(target).sum()
            if gradient is not None:  # not from exp(log p): that is slower, and rounded otherwise than the target
                torch.sub(ours.softmax(1), target, out=gradient[rows])
        ctx.save_for_backward(*((student, teacher) if gradient is None else (gradient,)))
        ctx.temperature, ctx.weight = temperature, weight / len(student)
        return total * -ctx.weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad * (ctx.weight / ctx.temperature)
        if len(ctx.saved_tensors) == 1:
            return ctx.saved_tensors[0] * grad, None, None, None
        student, teacher = ctx.saved_tensors
        gradient = torch.empty_like(student)
        for rows in _tiles(student):
            p = _softened(student[rows], grad.dtype, ctx.temperature).softmax(1)
            gradient[rows] = p.sub_(_softened(teacher[rows], grad.dtype, ctx.temperature).softmax(1)).mul_(grad)
        return gradient, None, None, None


def _softened(logits: Tensor, dtype: torch.dtype, temperature: float) -> Tensor:
    return logits.to(dtype) / temperature


def _tiles(logits: Tensor) -> list[slice]:
    size = max(1, _tile_elements(logits) // max(1, logits.shape[1]))
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def _tile_elements(logits: Tensor) -> int:
    """A quarter of a megabyte, within a core's cache; elsewhere, starting a kernel costs more than memory."""
    return 2**16 if logits.device.type == "cpu" else 2**24


def _wide(*logits: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in logits) else torch.float32
