import os
from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint so that its name always stands for a whole file: the old one or the new one.

    The file is written beside its place, as ``<name>.part``, brought to the disk and renamed. Lightning writes it to
    the system's temporary folder and moves it from there; where that is another file system, moving is copying, and a
    run that is killed meanwhile is left with half a file. What a killed run leaves of a ``.part`` is overwritten by the
    next checkpoint of that name, and never loaded. Other than local paths (``s3://...``) are written by Lightning.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes ``checkpoint`` to ``path``.

        Raises:
            OSError: if there is no room for it, or no permission; what stood at ``path`` is still there.
        """
        system, name = url_to_fs(str(path))
        if not isinstance(system, LocalFileSystem):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f"{target.name}.part")
        try:
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # else a crash of the machine may keep the new name and lose the bytes
            part.replace(target)
        except BaseException as error:
            part.unlink(missing_ok=True)
            if isinstance(error.__context__, OSError):  # torch says "unexpected pos" where there is no room
                raise error.__context__ from None
            raise
