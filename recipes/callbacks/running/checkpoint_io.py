import os
from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from lightning.pytorch.plugins.io import TorchCheckpointIO


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically: the file is always complete, either the old one or the new one.

    The file is written to the same folder as ``<name>.part``, flushed to the disk and renamed. Lightning writes to the
    system's temporary folder and moves the file. If that folder is on another file system, moving is copying, and a run
    that is killed meanwhile leaves half a file. A ``.part`` file left by a killed run is never loaded; the next
    checkpoint with that name overwrites it. Lightning writes paths that are not local (``s3://...``).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Writes ``checkpoint`` to ``path``.

        Raises:
            OSError: if there is no space or no permission; the previous file at ``path`` is kept.
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
