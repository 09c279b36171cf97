"""Notes what the processes of a run exchange in each training step, and which part of the program wanted it."""

import json
import traceback
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.utils._python_dispatch import TorchDispatchMode

# What a line of the stack tells of an exchange, by its file, function and text; the first that is found counts
_KINDS = {
    "logging": ("base/logged.py", "connectors/logger_connector/result.py", ".log("),
    "agreement on stopping": ("base/agreement.py",),
    "Lightning's signals": ("_broadcast_sigterm_tensor",),
    "batch norm": ("nn/norm.py", "nn/modules/_functions.py"),
    "buffers": ("_sync_buffers", "_pre_forward"),
    "the method": ("torch/distributed/nn/functional.py",),
    "gradients": ("_engine_run_backward",),
}


class Exchanges(Callback):
    """Counts, for each training step, how often and how many bytes this process sends, by what they are for.

    Args:
        path: path of the JSON file of rank 0: ``steps``, a list by the number of the step, from 1, of what ``calls``,
            ``bytes`` and ``barriers`` it had, by kind; and ``parameters``, the bytes of the trainable parameters.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._steps: dict[int, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
        self._step = 0
        self._mode: _Noted | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._mode = _Noted(self.note)
        self._mode.__enter__()

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        self._step = trainer.global_step + 1

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        assert self._mode is not None
        self._mode.__exit__(None, None, None)
        trained = sum(each.nbytes for each in pl_module.parameters() if each.requires_grad)
        steps = {step: self._steps[step] for step in range(1, self._step + 1)}
        if trainer.is_global_zero:
            self.path.write_text(json.dumps({"parameters": trained, "steps": steps}))

    def note(self, name: str, tensors: list[torch.Tensor]) -> None:
        kind, of_step = _kind(), self._steps[self._step]
        of_step["barriers" if name == "barrier" else "calls"][kind] += 1
        if name != "barrier":
            of_step["bytes"][kind] += sum(tensor.nbytes for tensor in tensors)


class _Noted(TorchDispatchMode):
    def __init__(self, note: Any) -> None:
        super().__init__()
        self.note = note

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func._schema.name.partition("::")
        if space == "c10d":
            sent = args[1] if "gather" in name else args[0]  # what is gathered into comes first
            self.note(name, [sent] if isinstance(sent, torch.Tensor) else sent)
        return func(*args, **(kwargs or {}))


def _kind() -> str:
    lines = [f"{frame.filename} {frame.name} {frame.line}" for frame in traceback.extract_stack()]
    for kind, marks in _KINDS.items():
        if any(mark in line for mark in marks for line in lines):
            return kind
    return "others"
