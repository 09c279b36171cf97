"""What the command does not print: advertisements, and lines that were printed before."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_WARNINGS = (  # about what this project does on purpose
    r".*isinstance\(treespec, LeafSpec\)",
    ".*does not have many workers",
    ".*Total length of `list` across ranks is zero",  # data without a validation split
    r".*functional.all_gather is deprecated",  # Lightning calls it, and is pinned
    ".*The dirpath has changed",  # every run has a directory of its own
    ".*overridden `on_before_batch_transfer` in `LightningModule`",  # our DataModules have no such hook
    ".*module\\(s\\) in eval mode at the start of training",  # frozen layers, teachers
    r"\s*Importing '.*' is not allowed",  # the command refuses such a path in one line
    ".*persistent_workers.*reload_dataloaders_every_n_epochs",  # the loader of a task stays the same
)
_OF_LIGHTNING = (  # the command says in its own words which checkpoint it takes
    *("Tip:", "Restoring states from the checkpoint", "Loaded model weights from", "Restored all states from"),
)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides such warnings and lines while a command runs."""
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message)
    log, lines = logging.getLogger("lightning.pytorch.utilities.rank_zero"), _Lines()
    log.addFilter(lines)
    try:
        yield
    finally:
        log.removeFilter(lines)


class _Lines(logging.Filter):
    """Passes each line of information once, and drops those of Lightning that repeat a line of the command."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        line = record.getMessage()
        if any(words in line for words in _OF_LIGHTNING):
            return False
        if record.levelno != logging.INFO:
            return True
        is_new = line not in self._said
        self._said.add(line)
        return is_new
