"""What a report prints while it works."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from tqdm import tqdm

_PATIENCE = 3.0  # seconds


class SaidOnce:
    """Prints a line, once for each thing that it is about."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, about: str, line: str) -> None:
        """Prints the line, unless one about the same thing was printed before."""
        if about not in self._said:
            rank_zero_info(line)
        self._said.add(about)


def shown(trainer: Trainer, parts: Any, what: str) -> Any:
    """The same parts, with a progress bar if the Trainer has one and they take longer than a few seconds."""
    visible = trainer.progress_bar_callback is not None and trainer.is_global_zero
    return tqdm(parts, desc=what, leave=False, delay=_PATIENCE, disable=not visible, dynamic_ncols=True)
