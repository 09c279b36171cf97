"""How features of images are shown: maps, nearest neighbours, and the table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from recipes.evaluation.features import Features
from recipes.evaluation.representation import Accuracies
from recipes.evaluation.tables import mean_and_std, new_table, per_cent
from recipes.plots.base import image_grid, new_figure, shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_QUERIES = 8
NEIGHBOURS = 8
"""Largest number of training images that are shown beside a test image."""
_RIGHT, _WRONG = "#1a9850", "#d73027"


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
        bank: features of the labelled training images, or of the most similar ones only.
        test: features of the labelled test images.
        train_images: maps indices [B] of the bank to images [B, C, H, W].
        test_images: the same for the test images.
        names: of the classes.
    """
    query = examples(test.label)
    similarity = F.normalize(test.feature[query]) @ F.normalize(bank.feature).T
    similarity, nearest = similarity.topk(min(NEIGHBOURS, len(bank.label)), dim=1)  # [Q, k]
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


def examples(label: Tensor) -> Tensor:
    """The test images that ``neighbours`` draws: the first of each of up to 8 classes, int64 [Q]; labels are [N]."""
    classes = label.unique()
    classes = classes[torch.linspace(0, len(classes) - 1, min(_QUERIES, len(classes))).long()]
    return torch.stack([(label == each).nonzero()[0, 0] for each in classes])


def table(accuracies: Accuracies, k: int, temperature: float, draws: int) -> Table:
    """The accuracies in per cent, 80 columns wide; the protocol stands below."""
    columns = sorted(next(iter(accuracies.values())), key=_place)
    of_draws = f"\nFew labels: mean ± standard deviation of {draws} draws." if len(columns) > 2 else ""
    result = new_table(
        title="Test accuracy of frozen features (%)",
        caption=f"kNN: k = {k}, temperature {temperature}; linear: logistic regression.{of_draws}",
    )
    result.add_column("", no_wrap=True)
    for column in columns:
        probe, _, few = column.partition("_")
        head = "kNN" if probe == "knn" else probe
        labels = f"{few.removesuffix('_per_class')}/class" if few else "all"
        result.add_column(f"{head}\n{labels}", justify="right", no_wrap=True)
    for row, results in accuracies.items():
        result.add_row(row, *(_cell(results[column]) for column in columns))
    return result


def _place(column: str) -> tuple[bool, float]:
    """Nearest neighbours first, and few labels before many."""
    probe, _, few = column.partition("_")
    return probe != "knn", int(few.removesuffix("_per_class")) if few else float("inf")


def _cell(values: Sequence[float]) -> str:
    mean, std = mean_and_std(values)
    return per_cent(mean) if len(values) == 1 else per_cent(mean, std)
