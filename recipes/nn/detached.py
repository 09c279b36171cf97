from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def detached(module: nn.Module, layers: Iterable[str]) -> Iterator[None]:
    """Cuts the gradient behind layers for a while: what they are made of, and what is before them, gets none.

    Args:
        module: in which the layers are.
        layers: their names in it; each gives one tensor.
    """
    hooks = [module.get_submodule(layer).register_forward_hook(_detach) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _detach(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return output.detach()
