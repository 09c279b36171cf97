"""What a continual learner knows of every task after every task, and what it cost."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datamodules import Batch
from recipes.evaluation.continual import MEASURES, AccuracyMatrix, forgetting_by_task, tasks_learned
from recipes.evaluation.tables import versions
from recipes.plots.base import new_figure, picture_directory, save, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FILE = "continual.json"
VIEWS = {"aware": "task-aware", "agnostic": "task-agnostic"}
_PLAIN = ("encoder", "normalize", "head")  # parts that a network has that learns no sequence
_WIDTH = 80
_NAMES = 34  # letters of the classes of a task
_NUMBERED = 12  # tasks, up to which cells have room for their number, and lines for a name
_DARK = 0.55  # accuracy from which its number is white


class ContinualReport(Callback):
    """Reports how a recipe learned a sequence of tasks; does nothing for a recipe without an ``accuracy_matrix``.

    At the end of training, and of a test, a table has the accuracy on each task after the last one, and the average
    accuracy, average incremental accuracy, learning accuracy, backward transfer, forward transfer and forgetting
    (``recipes.evaluation.continual``); task-aware, where it is known of which task an image is, and task-agnostic.
    ``continual.json`` in the run directory has these numbers, both matrices, null where nothing was measured, the
    protocol, and the cost:

    * ``seconds`` of training on each task, with what happens when it begins and ends, and without measuring;
    * ``parameters``, and ``bytes`` of the module's parameters and buffers; ``on_top`` has the bytes of each part beside
      encoder, normalisation and head, such as a copy of the old network or stored images;
    * ``flops_per_image`` of the first batch of the last epoch of each task, forward and backward, over the images that
      came from the data: additions and multiplications of matrix products, convolutions and attention, replayed images
      and old networks included. Null where a part of the recipe is compiled, which hides them.

    ``pictures/accuracy-matrix.png`` shows the matrices, ``pictures/accuracy-over-tasks.png`` how accuracies change, and
    ``pictures/forgetting.png`` which tasks are forgotten. With a ``WandbLogger``, the pictures go to Weights & Biases
    too. Nothing is written under ``fast_dev_run``.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []  # by task
        self.flops_per_image: list[float | None] = []  # by task
        self.images = 0
        self._task = 0
        self._last: float | None = None  # when the clock was read; None where it does not run
        self._paused = False
        self._measuring = 0.0  # seconds that the recipe had measured for by then
        self._counter: FlopCounterMode | None = None
        self._printed = ""

    # What it costs

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        if _measures(pl_module):
            self._start_clock(pl_module)
            self._enter_task(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the time since the last epoch to its task, and makes room for the task of this one."""
        if _measures(pl_module):
            self._read_clock(pl_module)
            self._enter_task(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        """Begins to count the operations of the first batch of the last epoch of a task."""
        if not _measures(pl_module):
            return
        last = trainer.datamodule.epochs.is_last_of_task(trainer.current_epoch)  # type: ignore[attr-defined]
        if last and batch_idx == 0 and not _is_compiled(pl_module):
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keeps the operations of the step, counts its images and reads the clock."""
        if not _measures(pl_module):
            return
        if (counter := self._stop_counting()) is not None:
            self.flops_per_image[self._task] = counter.get_total_flops() / len(batch.index)
        self.images += len(batch.index) * trainer.world_size
        self._read_clock(pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends what a batch that was skipped has begun."""
        self._stop_counting()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock, where it runs."""
        self._paused = self._last is not None
        if self._paused:
            self._read_clock(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Lets the clock go on."""
        if self._paused:
            self._start_clock(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends the counting of a step that failed."""
        self._stop_counting()

    def _enter_task(self, trainer: Trainer) -> None:
        self._task = trainer.datamodule.epochs.task_of(trainer.current_epoch)  # type: ignore[attr-defined]
        missing = self._task + 1 - len(self.seconds)
        self.seconds += [0.0] * missing
        self.flops_per_image += [None] * missing

    def _start_clock(self, pl_module: LightningModule) -> None:
        self._last, self._measuring = time.perf_counter(), _measuring_seconds(pl_module)

    def _read_clock(self, pl_module: LightningModule) -> None:
        """Counts the time since it was last read to the task, without that in which the recipe measured."""
        last, measuring = self._last, self._measuring
        self._start_clock(pl_module)
        if last is not None and self._last is not None:
            self.seconds[self._task] += self._last - last - (self._measuring - measuring)

    def _stop_counting(self) -> FlopCounterMode | None:
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.__exit__(None, None, None)
        return counter

    # How it is told

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops the clock and tells the results."""
        if _measures(pl_module):
            self._read_clock(pl_module)
            self._last = None
            self._tell(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tells the results, unless they were told."""
        if _measures(pl_module):
            self._tell(trainer, pl_module)

    def _tell(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pictures = picture_directory(trainer)
        if pictures is None:
            return
        recipe: Any = pl_module
        matrices = {view: matrix.cpu() for view, matrix in recipe.accuracy_matrix.compute().items()}
        if not tasks_learned(matrices["aware"]):
            return
        report = self._report(trainer, recipe, matrices)
        text = json.dumps(report, indent=1) + "\n"
        pictures.mkdir(parents=True, exist_ok=True)
        (pictures.parent / FILE).write_text(text)
        if self._printed == (said := json.dumps(report["matrix"])):  # a test after the training measures nothing new
            return
        self._printed = said
        console = Console(width=_WIDTH, highlight=False, markup=False)
        console.print(table(report))
        if report["expectation"]:
            console.print(report["expectation"])
        names = task_names(report["tasks"])
        save(heat_map(matrices, names), pictures / "accuracy-matrix.png", trainer)
        save(over_tasks(matrices, names), pictures / "accuracy-over-tasks.png", trainer)
        if tasks_learned(matrices["aware"]) > 1:
            save(forgetting_bars(matrices, names), pictures / "forgetting.png", trainer)

    def _report(self, trainer: Trainer, recipe: Any, matrices: Mapping[str, Tensor]) -> dict[str, Any]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        tasks = recipe.tasks
        classes = recipe.class_names or [str(label) for label in range(tasks.num_classes)]
        return {
            "recipe": type(recipe).__name__,
            "encoder": type(recipe.encoder).__name__,
            "data": type(getattr(data, "base", data)).__name__,
            "scenario": tasks.scenario,
            "view": "aware" if tasks.scenario == "task" else "agnostic",
            "expectation": getattr(recipe, "expectation", None),
            "tasks": [[classes[label] for label in tasks.labels(task)] for task in range(len(tasks))],
            "tasks_learned": tasks_learned(matrices["aware"]),
            "measures": {
                view: {name: _number(measure(matrix)) for name, measure in MEASURES.items()}
                for view, matrix in matrices.items()
            },
            "matrix": {
                view: [[_number(value) for value in row] for row in matrix.tolist()]
                for view, matrix in matrices.items()
            },
            "cost": {
                "seconds": [round(seconds, 3) for seconds in self.seconds],
                "flops_per_image": self.flops_per_image,
                **memory(recipe),
            },
            "protocol": {
                "split": "test" if data.splits.test is not None else "val",
                "model": "the weights at the end of each task, in eval mode, test transforms",
                "epochs_per_task": list(data.epochs_per_task),
                "batch_size": data.batch_size,
                "training_images_seen": self.images,
                "training_minutes": round(sum(self.seconds) / 60, 2),
                "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
                "precision": str(trainer.precision),
                "devices": trainer.world_size,
            },
            "versions": versions(),
        }

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the cost so far."""
        return {"seconds": list(self.seconds), "flops_per_image": list(self.flops_per_image), "images": self.images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where the checkpoint stopped."""
        self.seconds = list(state_dict["seconds"])
        self.flops_per_image = list(state_dict["flops_per_image"])
        self.images = state_dict["images"]


def _measures(module: LightningModule) -> bool:
    return isinstance(getattr(module, "accuracy_matrix", None), AccuracyMatrix)


def _measuring_seconds(module: LightningModule) -> float:
    return float(getattr(module, "measuring_seconds", 0.0))


def _is_compiled(module: nn.Module) -> bool:
    return any(part._compiled_call_impl is not None for part in module.modules())


def memory(recipe: nn.Module) -> dict[str, Any]:
    """How much a recipe stores, each tensor counted once.

    Args:
        recipe: whose parameters and buffers are counted, with those of its parts.

    Returns:
        The number of ``parameters`` that learn, and the ``bytes`` of all parameters and of all buffers; ``on_top``, the
        bytes of parameters and buffers of each part that is no plain network's, by its name.
    """
    parts = {name: part for name, part in recipe.named_children() if name not in _PLAIN}
    plain = {id(tensor) for name in _PLAIN if hasattr(recipe, name) for tensor in _tensors(getattr(recipe, name))}
    stored = {
        name: sum(tensor.nbytes for tensor in _tensors(part) if id(tensor) not in plain) for name, part in parts.items()
    }
    own = {name: buffer.nbytes for name, buffer in recipe.named_buffers(recurse=False)}
    return {
        "parameters": sum(parameter.numel() for parameter in recipe.parameters() if parameter.requires_grad),
        "bytes": {
            "parameters": sum(parameter.nbytes for parameter in recipe.parameters()),
            "buffers": sum(buffer.nbytes for buffer in recipe.buffers()),
            "on_top": {name: size for name, size in (stored | own).items() if size},
        },
    }


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def table(report: Mapping[str, Any]) -> Table:
    """The accuracies after the last task and what follows from the matrices, 80 columns wide.

    Args:
        report: what ``continual.json`` holds.
    """
    learned = report["tasks_learned"]
    views = list(VIEWS) if report["matrix"]["aware"] != report["matrix"]["agnostic"] else [report["view"]]
    last = {view: report["matrix"][view][learned] for view in views}
    asks = f": {VIEWS[report['view']]}" if len(views) > 1 else ""
    which = "the last task" if learned == len(report["tasks"]) else f"{learned} of {len(report['tasks'])} tasks"
    images = {"test": "test", "val": "validation"}[report["protocol"]["split"]]
    result = Table(
        title=f"{report['recipe']} on {report['data']}: accuracy after {which} (%)",
        caption=f"On the {images} images; the scenario is {report['scenario']}{asks}.",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    result.add_column("", no_wrap=True, overflow="ellipsis")
    for view in views:
        result.add_column(VIEWS[view] if len(views) > 1 else "accuracy", justify="right", no_wrap=True)
    for task, name in enumerate(task_names(report["tasks"])[:learned]):
        cells = (per_cent(last[view][task]) for view in views)
        result.add_row(f"task {shortened(name, _NAMES)}", *cells, end_section=task + 1 == learned)
    for measure in MEASURES:
        name = measure.replace("_", " ")
        result.add_row(name, *(per_cent(report["measures"][view][measure]) for view in views))
    return result


def task_names(tasks: Sequence[Sequence[str]]) -> list[str]:
    """The number of each task, from 1, and its classes, unless all tasks have the same.

    Args:
        tasks: the names of the classes of each.
    """
    if len(tasks) > 1 and all(classes == tasks[0] for classes in tasks):
        return [str(task + 1) for task in range(len(tasks))]
    return [f"{task + 1}: {', '.join(classes)}" for task, classes in enumerate(tasks)]


def per_cent(value: float | None) -> str:
    """A number times 100, or a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f}"


# Pictures


def heat_map(matrices: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draws the accuracy on each task (columns) before training and after each task (rows).

    Args:
        matrices: R by view, [T+1, T].
        names: of the tasks.
    """
    from matplotlib import colormaps

    views = _different(matrices)
    tasks = len(names)
    side = min(max(2.6, 0.5 * tasks), 7.0)
    figure = new_figure(1.9 + (side + 0.5) * len(views), side + 1.7)
    grid = figure.subplots(1, len(views), squeeze=False, sharey=True)[0]
    cmap = colormaps["Blues"].with_extremes(bad="0.85")
    step = -(-tasks // 25)
    for axes, (title, matrix) in zip(grid, views.items()):
        drawn = axes.imshow(100 * matrix.numpy(), cmap=cmap, vmin=0, vmax=100, interpolation="nearest")
        if tasks <= _NUMBERED:
            for (i, j), value in np.ndenumerate(matrix.numpy()):
                dark = "white" if value > _DARK else "0.15"
                text = "" if np.isnan(value) else f"{100 * value:.0f}"
                axes.text(j, i, text, ha="center", va="center", color=dark, fontsize=8)
        labels = [shortened(name, 16) for name in names] if tasks <= _NUMBERED else range(1, tasks + 1, step)
        turned: dict[str, Any] = {"rotation": 40, "ha": "right"} if tasks <= _NUMBERED else {}
        axes.set_xticks(range(0, tasks, step), labels, fontsize=8, parse_math=False, **turned)
        axes.set_yticks(range(0, tasks + 1, step), ["before", *range(step, tasks + 1, step)], fontsize=8)
        axes.set_xlabel("accuracy on task")
        if len(views) > 1:
            axes.set_title(title, fontsize=10)
    grid[0].set_ylabel("after task")
    figure.colorbar(drawn, ax=list(grid), shrink=0.8, aspect=30, pad=0.02).set_label("accuracy (%)")
    figure.suptitle("Accuracy on each task after each task", fontsize=11)
    return figure


def over_tasks(matrices: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draws how the accuracy on each task changes from when it is learned, and the mean over those learned by then.

    Args:
        matrices: R by view, [T+1, T].
        names: of the tasks.
    """
    from matplotlib import colormaps

    views = _different(matrices)
    learned = tasks_learned(matrices["aware"])
    figure = new_figure(2.2 + 3.6 * len(views), 3.6)
    grid = figure.subplots(1, len(views), squeeze=False, sharey=True)[0]
    for axes, (title, matrix) in zip(grid, views.items()):
        for task in range(learned):
            shade = colormaps["viridis"](0.92 * task / max(1, learned - 1))
            after = np.arange(task + 1, learned + 1)
            label = shortened(names[task], 18) if learned <= _NUMBERED else None
            axes.plot(after, 100 * matrix[after, task], color=shade, marker="o", markersize=3, lw=1, label=label)
        axes.plot(range(1, learned + 1), 100 * mean_over_tasks(matrix), color="black", lw=2.2, label="mean")
        tasks_axis(axes, learned)
        if len(views) > 1:
            axes.set_title(title, fontsize=10)
    grid[0].set_ylabel("accuracy (%)")
    text: dict[str, Any] = {"frameon": False, "fontsize": 8, "title_fontsize": 8}
    if learned <= _NUMBERED:
        text["title"] = "on task"
    legend = figure.legend(*grid[0].get_legend_handles_labels(), loc="outside right center", **text)
    for name in legend.get_texts():
        name.set_parse_math(False)
    figure.suptitle("Accuracy on the tasks learned", fontsize=11)
    return figure


def mean_over_tasks(matrix: Tensor) -> Tensor:
    """The mean accuracy on the tasks learned by then, after each task: float64 [k] of a matrix [T+1, T]."""
    learned = tasks_learned(matrix)
    return matrix.new_tensor([matrix[task, :task].mean().item() for task in range(1, learned + 1)])


def forgetting_bars(matrices: Mapping[str, Tensor], names: Sequence[str]) -> Figure:
    """Draws by how much the accuracy on each task but the last was better at its best.

    Args:
        matrices: R by view, [T+1, T], with two tasks learned or more.
        names: of the tasks.
    """
    bars = {title: forgetting_by_task(matrix) for title, matrix in _different(matrices).items()}
    figure = new_figure(6.4, 3.4)
    axes = figure.add_subplot()
    grouped_bars(axes, bars)
    tasks = len(next(iter(bars.values())))
    if tasks <= _NUMBERED:
        axes.set_xticks(range(tasks), [shortened(name, 16) for name in names[:tasks]], fontsize=8, parse_math=False)
    axes.set_xlabel("task")
    axes.set_ylabel("best accuracy − last (points)")
    if len(bars) > 1:
        axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"Forgetting after {tasks + 1} tasks", fontsize=11)
    return figure


def grouped_bars(axes: Axes, bars: Mapping[str, Tensor], errors: Mapping[str, Tensor] | None = None) -> None:
    """Draws numbers [N], in [-1, 1], as bars in per cent: a group for each, with a bar of each name.

    Args:
        axes: to draw on.
        bars: numbers by name.
        errors: their standard deviations, where they are known.
    """
    width = 0.8 / len(bars)
    for number, (name, values) in enumerate(bars.items()):
        places = np.arange(len(values)) + (number - (len(bars) - 1) / 2) * width
        error = None if errors is None or not errors[name].any() else 100 * errors[name].numpy()
        axes.bar(
            places, 100 * values.numpy(), width, yerr=error, color=colour(number, len(bars)), label=name, ecolor="0.3"
        )
    axes.axhline(0, color="black", lw=0.8)
    tasks = len(next(iter(bars.values())))
    step = -(-tasks // 25)
    axes.set_xticks(range(0, tasks, step), [str(task + 1) for task in range(0, tasks, step)])
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def colour(number: int, of: int) -> Any:
    """The colour of one of several things."""
    from matplotlib import colormaps

    return f"C{number}" if of <= 10 else colormaps["turbo"](number / (of - 1))


def tasks_axis(axes: Axes, tasks: int) -> None:
    """Makes the axes those of accuracies in per cent after so many tasks."""
    axes.set_xticks(range(1, tasks + 1, -(-tasks // _NUMBERED)))
    axes.set_xlim(0.8, tasks + 0.2)
    axes.set_ylim(-2, 102)
    axes.set_xlabel("after task")
    axes.grid(axis="y", color="0.92")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _different(matrices: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The matrices by the name of their view; one, where both are the same."""
    if matrices["aware"].nan_to_num(-1).equal(matrices["agnostic"].nan_to_num(-1)):
        return {"accuracy": matrices["aware"]}
    return {VIEWS[view]: matrix for view, matrix in matrices.items()}


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
