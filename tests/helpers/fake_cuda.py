"""CUDA tensors without a GPU: they are computed on the CPU, and what the host would wait for is noted.

``FakeTensorMode`` knows no values, so that nothing that depends on them could run, and torch's backward pass does not
take its tensors without a driver of CUDA. These tensors have values, and all of a training runs on them.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.optim.optimizer import _foreach_supported_types
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = Path(__file__).resolve().parents[2]
CUDA = torch.device("cuda", 0)
_DEPENDS_ON_DATA = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
_FROM_NUMBERS = {torch.tensor, torch.as_tensor, torch.scalar_tensor, Tensor.new_tensor}
_NUMBERS = Tensor.tolist, Tensor.numpy, Tensor.__array__
_waits: Counter[str] = Counter()


class OnCuda(Tensor):
    """A tensor that says it is on a GPU.

    Args:
        held: its values, on the CPU.
    """

    held: Tensor
    device = CUDA  # type: ignore[assignment]
    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnCuda":
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **layout)  # type: ignore[attr-defined]
        made.held = held
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, owners = kwargs or {}, {}
        _look_at(func, args, kwargs)

        def held(tensor: OnCuda) -> Tensor:
            owners[id(tensor.held)] = tensor
            return tensor.held

        given = tree_map_only(OnCuda, held, (args, kwargs))
        result = func(*given[0], **given[1])
        if func is torch.ops.aten.copy_.default and not isinstance(args[0], OnCuda):
            return args[0]  # to the CPU
        # what is changed in place is given back as the same tensor
        return tree_map_only(Tensor, lambda x: owners[id(x)] if id(x) in owners else OnCuda(x), result)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"on CUDA: {self.held}"


def _look_at(func: Any, args: Any, kwargs: Any) -> None:
    """Notes a wait, and refuses tensors of two devices where torch does."""
    name = func._schema.name.removeprefix("aten::")
    if name == "copy_":
        if isinstance(args[0], OnCuda) != isinstance(args[1], OnCuda) and not (args[2:] or kwargs.get("non_blocking")):
            _note("copy between devices")
        return
    rest = [args, kwargs]
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        chosen = [index for index in args[1] if index is not None]
        rest = [args[0], *args[2:]]
        is_filled = name != "index" and args[2].numel() == 1  # masked_fill
        if any(index.dtype in (torch.bool, torch.uint8) for index in chosen) and not is_filled:
            _note("mask")
        if isinstance(args[0], OnCuda) and not all(isinstance(index, OnCuda) for index in chosen):
            _note("index on another device")
    elif _DEPENDS_ON_DATA.intersection(func.tags):
        _note(name)
    scalars = torch.Tag.pointwise in func.tags or name.startswith(("_foreach_", "fill", "index_put"))
    other = [x for x in _tensors(rest) if not isinstance(x, OnCuda) and not (scalars and x.ndim == 0)]
    if other:
        raise RuntimeError(f"{name} takes tensors of two devices: one of {list(other[0].shape)} is on the CPU")


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _note(what: str) -> None:
    """Counts a wait, under the innermost line of the project, or else of a library that is not torch."""
    frames = [frame for frame in traceback.extract_stack() if "/tests/" not in frame.filename]
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and ".venv" not in frame.filename]
    others = [frame for frame in frames if "/lightning/" in frame.filename or "/torchmetrics/" in frame.filename]
    place = (own or others or [None])[-1]
    where = "the test" if place is None else f"{place.filename.removeprefix(f'{ROOT}/')}: {place.line}"
    _waits[f"{where} ({what})"] += 1


def _is_on_cuda(x: Tensor) -> bool:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return isinstance(x, OnCuda)


def _moved(x: Any, to_cuda: bool) -> Tensor:
    return OnCuda(x.clone()) if to_cuda else x.held.clone()


class _Made(TorchDispatchMode):
    """Puts what torch itself makes, such as gradients of zero, on the device of the tensors that it makes it for."""

    for_cuda = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        makes = self.for_cuda and isinstance(result, Tensor) and not _tensors((args, kwargs))
        return OnCuda(result) if makes else result


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, to_cuda: bool) -> Tensor:
        ctx.to_cuda = to_cuda
        return _moved(x, to_cuda)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _Move.apply(grad, not ctx.to_cuda), None


class _Devices(TorchFunctionMode):
    """Makes and moves tensors, where a device is given."""

    def __init__(self, made: _Made) -> None:
        super().__init__()
        self.made = made

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.made.for_cuda
        self.made.for_cuda = any(map(_is_on_cuda, _tensors((args, kwargs))))
        try:
            return self._call(func, args, dict(kwargs or {}))
        finally:
            self.made.for_cuda = before

    def _call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs.pop("pin_memory", None)
        if func is Tensor.pin_memory:
            return args[0]
        if func in _NUMBERS and isinstance(args[0], OnCuda):
            if func is not Tensor.tolist:
                raise TypeError("can't convert a tensor on CUDA to numpy")
            _note("tolist")
            return args[0].held.tolist()
        if func in (Tensor.cpu, Tensor.cuda):
            return _to(args[0], torch.device(func.__name__))
        if func is Tensor.to:
            copy = kwargs.pop("copy", False)
            return _to(args[0], *torch._C._nn._parse_to(*args[1:], **kwargs), copy)
        if func is Tensor.data.__set__ and isinstance(args[1], OnCuda):  # type: ignore[attr-defined]
            args[0].held = args[1].held
            return None
        if func is Tensor.new_tensor and _is_on_cuda(args[0]):
            kwargs.setdefault("device", CUDA)
        if kwargs.get("device") is None:
            return func(*args, **kwargs)
        to_cuda = torch.device(kwargs["device"]).type == "cuda"
        made = func(*args, **{**kwargs, "device": "cpu"})
        if to_cuda == _is_on_cuda(made):
            return made
        if func in _FROM_NUMBERS:
            _note("copy of numbers")
        requires_grad = made.requires_grad
        return (OnCuda(made.detach()) if to_cuda else made.held).requires_grad_(requires_grad)


_parse_to = torch._C._nn._parse_to


def _parsed_to(*args: Any, **kwargs: Any) -> Any:
    """What ``to`` is given: another tensor stands for its device and type."""
    own = [((CUDA if _is_on_cuda(x) else x.device), x.dtype) if isinstance(x, Tensor) else (x,) for x in args]
    return _parse_to(*(part for parts in own for part in parts), **kwargs)


def _to(x: Tensor, device: Any, dtype: Any = None, non_blocking: bool = False, layout: Any = None, copy: bool = False):  # type: ignore[no-untyped-def]
    to_cuda = _is_on_cuda(x) if device is None else device.type == "cuda"
    if to_cuda != _is_on_cuda(x):
        if not non_blocking:
            _note(f"copy to {'cuda' if to_cuda else 'cpu'}")
        x = _Move.apply(x, to_cuda) if x.requires_grad else _moved(x, to_cuda)
    options: dict[str, Any] = {} if layout is None else {"memory_format": layout}
    return x.to(dtype or x.dtype, copy=copy, **options)


class _Event:
    """A moment on the GPU, which is over when somebody asks."""

    is_over = False

    def record(self) -> None:
        """Does nothing."""

    def query(self) -> bool:
        """Whether it is over."""
        self.is_over = True
        return True

    def synchronize(self) -> None:
        """Waits until it is over."""
        if not self.is_over:
            _note("event")


class _Cpu(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Takes any device."""


def strategy() -> SingleDeviceStrategy:
    """For a Trainer on one GPU, within ``fake_cuda``."""
    return SingleDeviceStrategy(CUDA, _Cpu())


@contextlib.contextmanager
def _as_if_built() -> Iterator[None]:
    _foreach_supported_types.append(OnCuda)  # optimisers take all parameters at once
    try:
        with mock.patch("torch.cuda.Event", _Event), mock.patch("torch._C._nn._parse_to", _parsed_to):
            yield
    finally:
        _foreach_supported_types.remove(OnCuda)


@contextlib.contextmanager
def fake_cuda() -> Iterator[Callable[[], contextlib.AbstractContextManager[Counter[str]]]]:
    """Within it, ``torch.device("cuda")`` exists, for tensors that are made there.

    Yields:
        A context in which waits are counted: what it gives maps the line at fault and the reason to their number.
    """

    @contextlib.contextmanager
    def noted() -> Iterator[Counter[str]]:
        _waits.clear()
        waits: Counter[str] = Counter()
        yield waits
        waits.update(_waits)

    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter cannot change its class in place
    try:
        with _Made() as made, _Devices(made), _as_if_built():
            yield noted
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
