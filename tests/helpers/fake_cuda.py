"""CUDA tensors without a GPU: nothing is computed, and what the host would wait for is noted."""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
DEPENDS_ON_DATA = {"aten::nonzero", "aten::masked_select", "aten::bincount", "aten::_unique2", "aten::equal"}


class _Noted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = func._schema.name, kwargs or {}
        on_cuda = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.is_cuda]
        if name == "aten::_local_scalar_dense" and on_cuda:
            self.note(name)
            return {torch.bool: True}.get(args[0].dtype, 1.0 if args[0].is_floating_point() else 1)
        if name in DEPENDS_ON_DATA and on_cuda:
            self.note(name)
        if name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.note("mask")
        if name == "aten::_to_copy" and not kwargs.get("non_blocking"):
            device = torch.device(kwargs.get("device") or args[0].device)
            if device.type != args[0].device.type:
                self.note(f"copy to {device.type}")
        if name == "aten::copy_" and args[0].device.type != args[1].device.type:
            self.note("copy")
        return func(*args, **kwargs)

    def note(self, what: str) -> None:
        own = [frame for frame in traceback.extract_stack() if Path(frame.filename).is_relative_to(ROOT)]
        own = [frame for frame in own if "/tests/" not in frame.filename and ".venv" not in frame.filename]
        place = f"{Path(own[-1].filename).relative_to(ROOT)}: {own[-1].line}" if own else "the test"
        self.waits[f"{place} ({what})"] += 1


@contextlib.contextmanager
def fake_cuda() -> Iterator[Any]:
    """Within it, ``torch.device("cuda")`` exists, for tensors that are made there.

    Yields:
        A context in which waits are counted: what it gives maps the line at fault and the reason to their number.
    """

    @contextlib.contextmanager
    def noted() -> Iterator[Counter[str]]:
        mode = _Noted()
        with mode:
            yield mode.waits

    with FakeTensorMode():
        yield noted
