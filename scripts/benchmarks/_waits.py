"""Notes where a training step makes the host wait for the device."""

import json
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

ROOT = Path(__file__).resolve().parents[2]
_WARMUP = 3  # steps, in which things are made that later steps only use


class Waits(Callback):
    """Counts, by the line of this project that is at fault, how often training steps wait for a CUDA device.

    Logged steps wait where they are logged, after what is counted here.

    Args:
        path: path of the JSON file: ``steps`` that were looked at, and how many ``waits`` each line caused.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self.steps = 0
        self.found: Counter[str] = Counter()
        self.caught: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        import torch

        if trainer.global_step < _WARMUP:
            return
        self.steps += 1
        self.caught = warnings.catch_warnings()
        self.caught.__enter__()
        warnings.simplefilter("always")
        warnings.showwarning = self.note
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("warn")

    def on_train_batch_end(self, *_: Any) -> None:
        import torch

        if self.caught is not None:
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("default")
            self.caught.__exit__(None, None, None)
            self.caught = None

    def on_fit_end(self, *_: Any) -> None:
        self.path.write_text(json.dumps({"steps": self.steps, "waits": dict(self.found.most_common())}))

    def note(self, message: Any, *_: Any, **__: Any) -> None:
        """Finds the innermost line of the project, or else of any library, that the warning is about."""
        if "synchroniz" not in str(message):
            return
        frames = [frame for frame in traceback.extract_stack()[:-1] if Path(frame.filename) != Path(__file__)]
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename]
        frame = own[-1] if own else frames[-1]
        name = Path(frame.filename)
        self.found[f"{name.relative_to(ROOT) if own else name.name}:{frame.lineno} {frame.line}"] += 1
