from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class CompileEncoder(Callback):
    """Compiles the encoder with ``torch.compile`` for training; the other parts are not compiled.

    The first step waits for the compilation. Names in checkpoints do not change. Only training
    steps are compiled: an evaluation has few batches of other sizes, so compiling would cost more time than it saves.
    After the run, also after one that failed, the encoder is as it was before.

    Args:
        backend: backend of ``torch.compile``, such as ``inductor``.

    Raises:
        ValueError: if torch has no such backend.
    """

    def __init__(self, backend: str = "inductor") -> None:
        if backend not in torch.compiler.list_backends(()):  # with those for debugging
            usual = ", ".join(torch.compiler.list_backends())
            raise ValueError(f"no backend {backend!r} of torch.compile; there are {usual}")
        self.backend = backend
        self._before: Any = None  # how the encoder is called outside training steps
        self._compiled: Any = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks for the compilation, which happens at the first training batch."""
        if stage == "fit":
            encoder: Any = pl_module.encoder
            self._before = encoder._compiled_call_impl
            encoder.compile(backend=self.backend)
            self._compiled = encoder._compiled_call_impl
            self._leave_aside(pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Uses what is compiled."""
        pl_module.encoder._compiled_call_impl = self._compiled  # type: ignore[union-attr]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        """Leaves it aside."""
        self._leave_aside(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leaves it aside."""
        if self._compiled is not None:
            self._leave_aside(pl_module)

    def _leave_aside(self, pl_module: LightningModule) -> None:
        pl_module.encoder._compiled_call_impl = self._before  # type: ignore[union-attr]
