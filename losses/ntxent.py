import torch
from torch import Tensor, nn

from losses.streaming import streamed_logsumexp, streamed_logsumexp_of_others
from losses.temperature import check_temperature
from losses.unit import unit


class NTXent(nn.Module):
    """Normalised temperature-scaled cross-entropy (Chen et al., 2020, arXiv:2002.05709, Equation 1 and Algorithm 1).

    Every view is an anchor once. It has to identify the other view of its image, by cosine similarity, among all
    other views of the batch; the loss is the mean over all anchors. Computed in float32, or float64 for float64 input,
    in memory that grows with the batch and not with its square.

    Args:
        temperature: softmax temperature for the similarities, > 0. Table 5: 0.1 is the best of four on ImageNet, for
            100 epochs of batches of 4,096. Appendix B.9: of 0.1, 0.5 and 1, 0.5 is the best for more than 300 epochs of
            CIFAR-10, in batches of every size.

    Raises:
        ValueError: if the temperature is not a positive number.
    """

    def __init__(self, temperature: float = 0.5) -> None:
        super().__init__()
        self.temperature = check_temperature(temperature)

    def forward(
        self, z1: Tensor, z2: Tensor, candidates: tuple[Tensor, Tensor] | None = None, offset: int = 0
    ) -> Tensor:
        """Computes the loss of N images.

        Args:
            z1: embeddings of the first views [N, D]; need not be normalised.
            z2: embeddings of the second views [N, D], in the order of ``z1``.
            candidates: first and second views [M, D] of all images to choose from, with these N among them:
                the views of all devices. None for (z1, z2).
            offset: the row of ``candidates`` at which these N images start.

        Returns:
            The mean over the 2N anchors, a scalar.

        Raises:
            ValueError: if the shapes do not match, or the candidates do not hold the anchors.
        """
        c1, c2 = candidates if candidates is not None else (z1, z2)
        if z1.ndim != 2 or z1.shape != z2.shape or c1.shape != c2.shape or c1.shape[1:] != z1.shape[1:]:
            shapes = ", ".join(str(list(z.shape)) for z in (z1, z2, c1, c2))
            raise ValueError(f"embeddings are {shapes}: both views must be [N, D], all candidates [M, D] of the same D")
        n, m = len(z1), len(c1)
        if not 0 <= offset <= m - n:
            raise ValueError(f"offset is {offset}: {n} images among {m} candidates start at 0 to {m - n}")
        anchors = unit(torch.cat([z1, z2]))  # [2N, D]
        if c1 is z1 and c2 is z2:
            keys = anchors
            total = streamed_logsumexp_of_others(anchors, 1 / self.temperature)  # [2N]
        else:
            keys = unit(torch.cat([c1, c2]))  # [2M, D]
            first = torch.arange(offset, offset + n, device=z1.device)
            total = streamed_logsumexp(anchors, keys, 1 / self.temperature, torch.cat([first, first + m]))
        positives = keys.unflatten(0, (2, m))[:, offset : offset + n].flip(0).flatten(0, 1)  # [2N, D]
        return (total - (anchors * positives).sum(1) / self.temperature).mean()
