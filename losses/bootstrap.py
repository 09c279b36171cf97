import torch
from torch import Tensor, nn

from losses.streaming import streamed_logsumexp
from losses.temperature import check_temperature
from losses.unit import unit


class BootstrapLoss(nn.Module):
    """The squared distance of normalised predictions and targets (BYOL: Grill et al., 2020, arXiv:2006.07733).

    For both views v = 1, 2 with the other view v': ‖p̂ᵥ - t̂ᵥ'‖² = 2 - 2 cos(pᵥ, tᵥ') (Equation 2), the sum of the two
    directions, the mean over the images.

    With ``negatives_weight`` β > 0, predictions are also driven away from the targets of other images (Equation 6,
    which joins BYOL, β = 0, and SimCLR, β = 1): the loss gains 2 α β log(Σⱼ exp(p̂ᵥ·t̂ⱼᵥ'/α) + Σ_{j≠i} exp(p̂ᵥ·t̂ⱼᵥ/α)),
    with the temperature α and j over all images. Computed in float32, or float64 for float64 input.

    Args:
        negatives_weight: weight β of the negatives, >= 0.
        temperature: softmax temperature α for the negatives, > 0. Unused if negatives_weight is 0.

    Raises:
        ValueError: if ``negatives_weight`` is negative or the temperature not positive.
    """

    def __init__(self, negatives_weight: float = 0.0, temperature: float = 0.1) -> None:
        super().__init__()
        if not negatives_weight >= 0:
            raise ValueError(f"negatives_weight is {negatives_weight}: it must be at least 0")
        self.negatives_weight = negatives_weight
        self.temperature = check_temperature(temperature)

    def forward(
        self,
        predictions: tuple[Tensor, Tensor],
        targets: tuple[Tensor, Tensor],
        candidates: tuple[Tensor, Tensor] | None = None,
        offset: int = 0,
    ) -> Tensor:
        """Computes the loss of N images.

        Args:
            predictions: of both views [N, D]; need not be normalised.
            targets: of both views [N, D], in the same order; need not be normalised.
            candidates: targets of both views of all images [M, D], these N among them: those of all devices. None for
                ``targets``. Without negatives they play no part.
            offset: the row of ``candidates`` at which these N images start.

        Returns:
            A scalar.
        """
        p1, p2, t1, t2 = (unit(x) for x in (*predictions, *targets))
        loss = (2 - 2 * (p1 * t2).sum(1)) + (2 - 2 * (p2 * t1).sum(1))  # [N]
        if self.negatives_weight:
            c1, c2 = (t1, t2) if candidates is None else (unit(c) for c in candidates)
            own = torch.arange(offset, offset + len(p1), device=p1.device)
            for p, same_view, other_view in ((p1, c1, c2), (p2, c2, c1)):
                others = streamed_logsumexp(p, torch.cat([same_view, other_view]), 1 / self.temperature, own)
                loss = loss + 2 * self.temperature * self.negatives_weight * others
        return loss.mean()
