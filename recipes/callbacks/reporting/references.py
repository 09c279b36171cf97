"""Which encoders a trained one is compared with."""

import copy
import math
import weakref
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from recipes.evaluation.representation import PIXEL_SIDE, Pixels, have_same_weights

TRAINED = "trained encoder"
RANDOM = "random encoder"
PRETRAINED = "pretrained encoder"
PIXELS = "raw pixels"

_MOST_PIXELS = 400_000_000  # of the bank; more, as of ImageNet, would not fit in memory as floats


class References:
    """The encoder that training started from, and raw pixels.

    Attributes:
        initial: a copy of the recipe's encoder at initialisation, on the CPU between evaluations.
    """

    def __init__(self) -> None:
        self.initial: nn.Module | None = None
        self._of: weakref.ref[LightningModule] | None = None

    def is_of(self, recipe: LightningModule) -> bool:
        """Whether the encoder is that of this recipe."""
        return self._of is not None and self._of() is recipe

    def remember(self, recipe: LightningModule, copied: bool) -> None:
        """Begins with another recipe; ``copied`` keeps a copy of its encoder."""
        encoder: Any = recipe.encoder
        if copied:
            self.initial = copy.deepcopy(encoder).cpu().eval().requires_grad_(False)
        self._of = weakref.ref(recipe)

    def encoders(self, trainer: Trainer, recipe: LightningModule) -> dict[str, nn.Module]:
        """The references by name, on the device of the recipe; each maps images [B, C, H, W] to features [B, F].

        Mean and standard deviation of the images are the recipe's. The initial encoder is left out if it does not
        differ from the trained one, raw pixels if there are too many training images.
        """
        rows: dict[str, nn.Module] = {}
        encoder: Any = recipe.encoder
        if self.initial is not None and not have_same_weights(self.initial, encoder):
            initial = trainer.precision_plugin.convert_module(self.initial).to(recipe.device)
            normalize: Any = recipe.normalize
            rows[PRETRAINED if getattr(initial, "pretrained", False) else RANDOM] = nn.Sequential(normalize, initial)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        channels, *sides = data.image_shape
        pixels = len(data.bank_dataloader().dataset) * channels * math.prod(min(side, PIXEL_SIDE) for side in sides)
        if pixels <= _MOST_PIXELS:
            rows[PIXELS] = Pixels()
        return rows

    def release(self) -> None:
        """Takes the initial encoder back to the CPU."""
        if self.initial is not None:
            self.initial.cpu()
