import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class CompileEncoder(Callback):
    """Compiles the encoder with ``torch.compile`` for training; the other parts are not compiled.

    The first step waits for the compilation. Names in checkpoints do not change. Only training
    steps are compiled: an evaluation has few batches of other sizes, so compiling would cost more time than it saves.

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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Asks for the compilation, which happens at the first training batch."""
        torch.compiler.set_stance("force_eager")
        if stage == "fit":
            pl_module.encoder.compile(backend=self.backend)  # type: ignore[union-attr]

    def on_train_batch_start(self, *_: object) -> None:
        """Uses what is compiled."""
        torch.compiler.set_stance("default")

    def on_train_batch_end(self, *_: object) -> None:
        """Leaves it aside."""
        torch.compiler.set_stance("force_eager")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leaves other modules of the process as they were."""
        torch.compiler.set_stance("default")
