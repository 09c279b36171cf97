"""The type of arguments that name where something is written."""

from pathlib import Path
from typing import Annotated


class _Written:
    """Marks the type of an argument whose path is written to."""

    def __repr__(self) -> str:
        return "written to"


WRITTEN = _Written()
OutputPath = Annotated[str | Path, WRITTEN]
"""A path that is written to. It comes from the command line, a config or the default, never out of a checkpoint."""
