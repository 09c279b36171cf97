from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class FeatureLoss(nn.Module):
    """Compares the outputs of a student's layer and a teacher's layer for the same images.

    A subclass writes ``forward(student, teacher)``, which returns a scalar in float32, or float64 for float64 input;
    gradients go to the student and to the loss's own parameters, never to the teacher.

    Attributes:
        needs: what else ``forward`` takes, by keyword: ``label`` int64 [B], ``index`` int64 [B] the positions of the
            images in the training set, ``key`` their random key.
        compares_images: whether images are compared with one another: ``forward`` is then given those of all devices.
    """

    needs: tuple[str, ...] = ()
    compares_images = False

    def build(self, student: Sequence[int], teacher: Sequence[int], images: int) -> None:
        """Makes the parameters and buffers, once, before training; by default there are none.

        Args:
            student: shape of the output of the student's layer for one image, such as (channels, height, width).
            teacher: the same of the teacher.
            images: how many training images there are.

        Raises:
            ValueError: if the two do not fit together.
        """

    def forward(self, student: Tensor, teacher: Tensor, **needed: Any) -> Tensor:
        """Compares the outputs of the layers for B images: student [B, ...], teacher [B, ...]."""
        raise NotImplementedError(f"{type(self).__name__} must write forward()")

    def after_backward(self) -> None:
        """Called after the backward pass of a batch: the state that ``forward`` reads may change now."""
