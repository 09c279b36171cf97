"""Draws pictures of a run."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from datamodules import Batch
from recipes.callbacks.reporting.files import images_of, picture_directory, save
from recipes.callbacks.reporting.references import PIXELS, TRAINED
from recipes.callbacks.reporting.representation_probe import RepresentationProbe
from recipes.evaluation.budget import points_of_map
from recipes.evaluation.features import Features
from recipes.plots.base import image_grid
from recipes.plots.representation import neighbours, tsne
from recipes.plots.training import loss_curve

_VIEWED_IMAGES = 6
_VIEWS = 7
_FLUSH = 1000  # losses that wait on the device


class Pictures(Callback):
    """Draws the figures of a run, as PNG files in ``pictures/`` of the run directory.

    At the end of training:

    * ``loss.png``: the training loss of every step on the first device, and ``val/knn`` if it was measured;
    * ``views.png``: random views of some training images, for a recipe that has ``views``.

    At the end of the test, from the features of ``RepresentationProbe``, which must be a callback of the run:

    * ``tsne.png``: the test images before and after training;
    * ``neighbours.png``: the training images whose features are most similar to those of some test images.

    All figures are also logged to Weights & Biases if a ``WandbLogger`` is used. Nothing is drawn under
    ``fast_dev_run``.

    Args:
        points: largest number of test images in ``tsne.png``, > 0. t-SNE takes some seconds for 1,000 images; after a
            short training there are fewer (``--probe.max_share``).

    Raises:
        ValueError: if ``points`` is not positive.
    """

    def __init__(self, points: int = 1000) -> None:
        if points < 1:
            raise ValueError(f"points is {points}: it must be positive")
        self.points = points
        self._steps: list[int] = []
        self._losses: list[float] = []
        self._pending: list[Tensor] = []
        self._batch: Batch | None = None

    # Training

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the losses of another run; those of a run that goes on are in its checkpoint."""
        if stage == "fit":
            self._steps, self._losses, self._pending, self._batch = [], [], [], None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Keeps some images of the first batch."""
        if self._batch is None:
            self._batch = Batch(*(x[:_VIEWED_IMAGES].clone() for x in batch[:3]))  # a recipe may add more

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keeps the loss."""
        if isinstance(outputs, dict) and "loss" in outputs:
            # Lightning divides the loss by the number of accumulated batches
            self._pending.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
            self._steps.append(trainer.global_step)
        if len(self._pending) >= _FLUSH:
            self._flush()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the loss and the views."""
        directory = picture_directory(trainer)
        self._flush()
        if directory is None:
            return
        if self._losses:
            probe = _probe(trainer)
            curve = [(step, value) for step, value, _ in probe.history] if probe else []
            save(loss_curve(self._steps, self._losses, curve), directory / "loss.png", trainer)
        views, key = getattr(pl_module, "views", None), getattr(pl_module, "key", None)
        if self._batch is not None and isinstance(views, torch.nn.Module) and callable(key):
            batch = self._batch
            rows = [list(batch.image)]
            with torch.no_grad(), isolate_rng():
                rows += [list(views(batch.image, key(batch, view))) for view in range(_VIEWS)]
            heads = ["original", *(f"view {view}" for view in range(_VIEWS))]
            title = f"{type(pl_module).__name__}: random views of training images"
            save(image_grid([list(row) for row in zip(*rows)], title, heads), directory / "views.png", trainer)
        self._batch = None

    def _flush(self) -> None:
        if self._pending:
            self._losses += torch.stack(self._pending).float().tolist()
        self._pending = []

    def state_dict(self) -> dict[str, Any]:
        """The loss so far, so that the curve of a resumed run is whole."""
        self._flush()
        return {"steps": torch.tensor(self._steps), "losses": torch.tensor(self._losses)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up the curve where the checkpoint stopped."""
        self._steps, self._losses = state_dict["steps"].tolist(), state_dict["losses"].tolist()
        self._pending = []

    # Test

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws t-SNE and neighbours."""
        directory = picture_directory(trainer)
        probe = _probe(trainer)
        if directory is None or probe is None or not probe.measured:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        names = list(data.class_names)
        panels = {}
        count = min(self.points, len(probe.measured[TRAINED].test.label))
        points = points_of_map(probe.budget_of_pictures / 2, count)
        for row in reversed([row for row in probe.measured if row != PIXELS]):  # before, after
            test = probe.measured[row].test
            chosen = torch.linspace(0, len(test.label) - 1, points).long()
            accuracy = 100 * probe.accuracies[row]["knn"][0]
            title = f"{'after' if row == TRAINED else 'before'} training: {row}, kNN {accuracy:.1f} %"
            panels[title] = Features(*(x[chosen] for x in test))
        if all(test.feature.isfinite().all() and len(test.label) > 3 for test in panels.values()):
            save(tsne(panels, names), directory / "tsne.png", trainer)
        train, test_set = images_of(data.bank_dataloader()), images_of(data.test_dataloader())
        if train is not None and test_set is not None:
            figure = neighbours(*probe.measured[TRAINED], train, test_set, names)
            save(figure, directory / "neighbours.png", trainer)


def _probe(trainer: Trainer) -> RepresentationProbe | None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, RepresentationProbe)), None)
