import torch
from torch import Tensor, nn

from losses.streaming import streamed_logsumexp
from losses.temperature import check_temperature
from losses.unit import unit


class InfoNCE(nn.Module):
    """Cross-entropy of finding the positive among negatives (van den Oord et al., 2018, arXiv:1807.03748, Equation 4).

    As MoCo takes it (He et al., 2020, arXiv:1911.05722, Equation 1): an anchor has one positive of its own, and all
    anchors share the negatives. Computed in float32, or float64 for float64 input, in memory that grows with the number
    of vectors: the matrix of logits is never stored.

    Args:
        temperature: softmax temperature for the similarities, > 0.

    Raises:
        ValueError: if the temperature is not a positive number.
    """

    def __init__(self, temperature: float = 0.07) -> None:  # MoCo, Section 3.3
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(self, anchor: Tensor, positive: Tensor, negatives: Tensor, exclude: Tensor | None = None) -> Tensor:
        """Computes -log(exp(a·p/T) / (exp(a·p/T) + Σ exp(a·n/T))), the mean over the anchors.

        Args:
            anchor: embeddings [N, D]; need not be normalised.
            positive: embeddings [N, D], in the order of ``anchor``; need not be normalised.
            negatives: unit vectors [K, D], as a ``FeatureQueue`` and a ``MemoryBank`` hold them.
            exclude: the row in ``negatives`` that each anchor leaves out, int64 [N]: where its positive is among them.

        Returns:
            A scalar.

        Raises:
            ValueError: if the shapes do not match.
        """
        if anchor.ndim != 2 or anchor.shape != positive.shape or negatives.shape[1:] != anchor.shape[1:]:
            shapes = ", ".join(str(list(x.shape)) for x in (anchor, positive, negatives))
            raise ValueError(f"embeddings are {shapes}: anchor and positive must be [N, D], negatives [K, D]")
        anchor, positive = unit(anchor), unit(positive)
        found = (anchor * positive).sum(1) / self.temperature  # [N]
        others = streamed_logsumexp(anchor, negatives, 1 / self.temperature, exclude)  # [N]
        return (torch.logaddexp(found, others) - found).mean()
