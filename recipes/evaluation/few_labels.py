from collections.abc import Sequence

import torch
from torch import Tensor

from recipes.augment import Key, uniform


def few_label_draws(
    labels: Tensor, num_classes: int, per_class: int, draws: int, seed: int = 0, names: Sequence[str] | None = None
) -> Tensor:
    """Draws the same number of labelled images of each class, several times.

    Args:
        labels: int64 [N], classes of the images, -1 where unlabelled.
        num_classes: how many classes there are.
        per_class: how many images of each class to draw, > 0.
        draws: how many times, > 0.
        seed: the draws are a function of it and of the labels alone.
        names: of the classes, for the error.

    Returns:
        Rows of ``labels``, int64 [draws, num_classes × per_class], in the order of the classes; none twice in a draw.

    Raises:
        ValueError: if a class has too few images.
    """
    row = torch.arange(len(labels), device=labels.device)
    number = torch.cat([uniform(Key(seed, 0, row, draw), 1) for draw in range(draws)], dim=1)  # [N, draws]
    chosen = []
    for label in range(num_classes):
        members = row[labels == label]
        if len(members) < per_class:
            name = f"{label} ({names[label]})" if names else f"{label}"
            raise ValueError(f"class {name} has {len(members)} labelled images, a draw needs {per_class}")
        first = number[members].argsort(dim=0, stable=True)[:per_class]  # [per_class, draws]
        chosen.append(members[first])
    return torch.cat(chosen).T.contiguous()
