from itertools import groupby

from torch import Tensor, nn

from recipes.augment.base import Views
from recipes.augment.colour import Colour, recolour
from recipes.augment.geometry import Geometry, move
from recipes.augment.keys import Key


class Compose(Views):
    """Applies operations one after the other, the i-th with ``key.fold_in(i)``.

    Neighbouring geometric operations share one interpolation, and neighbouring colour operations one pass.

    Args:
        ops: the operations, first to last.
    """

    def __init__(self, ops: list[Views]) -> None:
        super().__init__()
        self.ops = nn.ModuleList(ops)

    def view(self, image: Tensor, key: Key) -> Tensor:
        """Applies the operations to float images [B, C, H, W]."""
        for kind, numbered in groupby(enumerate(self.ops), key=lambda item: _kind(item[1])):
            numbers, ops = zip(*numbered, strict=True)
            keys = [key.fold_in(number) for number in numbers]
            if kind is Geometry:
                image = move(ops, image, keys)
            elif kind is Colour:
                image = recolour(ops, image, keys)
            else:
                for op, op_key in zip(ops, keys, strict=True):
                    image = op.view(image, op_key)
        return image


def _kind(op: nn.Module) -> type[Views]:
    return next((kind for kind in (Geometry, Colour) if isinstance(op, kind)), Views)
