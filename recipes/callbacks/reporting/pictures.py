"""Pictures of a run, drawn on figures of their own: nothing of pyplot's global state is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.nn import functional as F

from datamodules import Batch
from recipes.callbacks.reporting.representation_probe import PIXELS, TRAINED, RepresentationProbe
from recipes.evaluation.features import Features
from recipes.plots.base import images_of, new_figure, picture_directory, save, shortened, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VIEWED_IMAGES = 6
_VIEWS = 7
_QUERIES = 8
_NEIGHBOURS = 8
_BINS = 200  # points of the curve of the loss
_FLUSH = 1000  # losses that wait on the device
_RIGHT, _WRONG = "#1a9850", "#d73027"


class Pictures(Callback):
    """Draws what a run did, as PNG files in ``pictures/`` of the run directory.

    At the end of training: ``loss.png``, the training loss of every step on the first device, with ``val/knn`` where
    it was measured; and ``views.png``, random views of some training images, for a recipe that has ``views``.
    At the end of the test: ``tsne.png``, the test images before and after training, and ``neighbours.png``, the
    training images that the trained encoder finds most similar to some test images. Both need ``RepresentationProbe``,
    whose features they show. With a ``WandbLogger``, all go to Weights & Biases too. Nothing is drawn under
    ``fast_dev_run``.

    Args:
        points: at most so many test images are shown in ``tsne.png``, > 0. t-SNE takes some seconds for 1,000.

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
        for row in reversed([row for row in probe.measured if row != PIXELS]):  # before, after
            test = probe.measured[row].test
            chosen = torch.linspace(0, len(test.label) - 1, min(self.points, len(test.label))).long()
            accuracy = 100 * probe.accuracies[row]["knn"][0]
            title = f"{'after' if row == TRAINED else 'before'} training: {row}, kNN {accuracy:.1f} %"
            panels[title] = Features(*(x[chosen] for x in test))
        if all(test.feature.isfinite().all() and len(test.label) > 3 for test in panels.values()):
            save(tsne(panels, names), directory / "tsne.png", trainer)
        train, test_set = images_of(data.bank_dataloader()), images_of(data.test_dataloader())
        if train is not None and test_set is not None:
            figure = neighbours(*probe.measured[TRAINED], train, test_set, names)
            save(figure, directory / "neighbours.png", trainer)


def loss_curve(steps: Sequence[int], losses: Sequence[float], knn: Sequence[tuple[int, float]] = ()) -> Figure:
    """Draws the loss, as mean and range of bins of steps, and the kNN accuracy.

    Args:
        steps: of the optimiser, [N], N > 0.
        losses: [N].
        knn: pairs of a step and an accuracy in [0, 1].
    """
    figure = new_figure(7.0, 4.2)
    axes = figure.add_subplot()
    size = max(1, len(steps) // _BINS)
    step = torch.tensor(steps, dtype=torch.float64).split(size)
    loss = torch.tensor(losses, dtype=torch.float64).split(size)
    x = [part.mean().item() for part in step]
    label = "training loss" if size == 1 else f"training loss, mean and range of {size} steps"
    if size > 1:
        low, high = [part.min().item() for part in loss], [part.max().item() for part in loss]
        axes.fill_between(x, low, high, color="C0", alpha=0.2, linewidth=0)
    lines = axes.plot(x, [part.mean().item() for part in loss], color="C0", label=label, marker=_marker(x))
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    title = "Training loss"
    if knn:
        other = axes.twinx()
        x = [float(step) for step, _ in knn]
        values = [100 * value for _, value in knn]
        lines += other.plot(x, values, color="C1", label="val/knn", marker="o", markersize=3)
        other.set_ylabel("kNN accuracy on validation images (%)")
        title = "Training loss and kNN accuracy"
    axes.set_title(title)
    figure.legend(handles=lines, loc="outside lower center", ncols=2, frameon=False)
    return figure


def image_grid(
    rows: Sequence[Sequence[Tensor]],
    title: str,
    heads: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    frames: Sequence[Sequence[str | None]] | None = None,
) -> Figure:
    """Draws images in rows and columns.

    Args:
        rows: images [C, H, W], uint8 or float in [0, 1]; sizes may differ.
        title: above all.
        heads: above each column.
        captions: below each image.
        frames: colours around the images, None for no frame.
    """
    width, height = len(rows[0]), len(rows)
    figure = new_figure(0.4 + 1.05 * width, 0.8 + (1.25 if captions else 1.05) * height)
    grid = figure.subplots(height, width, squeeze=False)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            axes = grid[i][j]
            show(axes, image)
            colour = frames[i][j] if frames else None
            for spine in axes.spines.values():
                spine.set_visible(colour is not None)
                spine.set(color=colour, linewidth=3)
            if i == 0:
                axes.set_title(heads[j], fontsize=9)
            if captions:
                axes.set_xlabel(captions[i][j], fontsize=8)
    figure.suptitle(title, fontsize=11)
    return figure


def tsne(panels: dict[str, Features], names: Sequence[str]) -> Figure:
    """Draws t-SNE maps of L2-normalised features, side by side.

    Args:
        panels: for each title the features of at least 4 labelled images.
        names: of the classes.
    """
    from matplotlib import colormaps
    from sklearn.manifold import TSNE  # takes a second to import

    figure = new_figure(5.2 * len(panels) + 1.3, 5.2)
    few = len(names) <= 20
    cmap = colormaps["tab10" if len(names) <= 10 else "tab20"] if few else colormaps["turbo"]
    colours = [cmap(i if few else i / (len(names) - 1)) for i in range(len(names))]
    handles: list[Any] = []
    for axes, (title, features) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
        perplexity = min(30.0, (len(features.label) - 1) / 3)
        place = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(
            F.normalize(features.feature).numpy()
        )
        dots = {
            name: axes.scatter(*place[(features.label == label).numpy()].T, s=7, color=colours[label], label=name)
            for label, name in enumerate(names)
        }
        handles = list(dots.values())
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("t-SNE dimension 1")
        axes.set_ylabel("t-SNE dimension 2")
        axes.set_xticks([])
        axes.set_yticks([])
    count = len(next(iter(panels.values())).label)
    figure.suptitle(f"t-SNE of the features of {count:,} test images", fontsize=12)
    if few:
        short = [shortened(name) for name in names]
        figure.legend(handles, short, loc="outside right center", frameon=False, markerscale=2.5, title="class")
    return figure


def neighbours(
    bank: Features,
    test: Features,
    train_images: Callable[[Tensor], Tensor],
    test_images: Callable[[Tensor], Tensor],
    names: Sequence[str],
) -> Figure:
    """Draws test images, the first of each of some classes, and their most similar images of the bank.

    Args:
        bank: features of the labelled training images.
        test: features of the labelled test images.
        train_images: maps indices [B] of the bank to images [B, C, H, W].
        test_images: the same for the test images.
        names: of the classes.
    """
    classes = test.label.unique()
    classes = classes[torch.linspace(0, len(classes) - 1, min(_QUERIES, len(classes))).long()]
    query = torch.stack([(test.label == label).nonzero()[0, 0] for label in classes])  # [Q]
    similarity = F.normalize(test.feature[query]) @ F.normalize(bank.feature).T
    similarity, nearest = similarity.topk(min(_NEIGHBOURS, len(bank.label)), dim=1)  # [Q, k]
    found = train_images(bank.index[nearest.flatten()]).unflatten(0, nearest.shape)
    asked = test_images(test.index[query])
    right = (bank.label[nearest] == test.label[query][:, None]).tolist()
    rows, captions, frames = [], [], []
    for i, label in enumerate(test.label[query].tolist()):
        rows.append([asked[i], *found[i]])
        neighbour_names = [shortened(names[other]) for other in bank.label[nearest[i]].tolist()]
        scores = similarity[i].tolist()
        captions.append([shortened(names[label]), *(f"{n}  {s:.2f}" for n, s in zip(neighbour_names, scores))])
        frames.append([None, *(_RIGHT if hit else _WRONG for hit in right[i])])
    share = 100 * sum(map(sum, right)) / sum(map(len, right))
    title = f"Test images and their most similar training images ({share:.0f} % of the same class, framed green)"
    return image_grid(
        rows, title, ["test image", *(f"nearest {n + 1}" for n in range(nearest.shape[1]))], captions, frames
    )


def _probe(trainer: Trainer) -> RepresentationProbe | None:
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, RepresentationProbe)), None)


def _marker(x: Sequence[float]) -> str:
    return "o" if len(x) == 1 else ""  # a line through one point cannot be seen
