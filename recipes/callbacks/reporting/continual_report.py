"""Reports the accuracy on every task after every task, and the cost of training."""

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from datamodules import Batch
from recipes.callbacks.reporting.files import picture_directory, save
from recipes.evaluation.continual import AccuracyMatrix, forgetting_by_task, measures, tasks_learned, view_of
from recipes.evaluation.cost import memory
from recipes.evaluation.tables import number, terminal, versions
from recipes.plots.continual import forgetting_bars, heat_map, over_tasks, table, task_names

FILE = "continual.json"


class ContinualReport(Callback):
    """Reports how a recipe learned a sequence of tasks; does nothing for a recipe without an ``accuracy_matrix``.

    At the end of training, and of a test, a table has the accuracy on each task after the last one, and the average
    accuracy, average incremental accuracy, learning accuracy, backward transfer, forward transfer and forgetting
    (``recipes.evaluation.continual``), both task-aware (the task of each image is known) and task-agnostic. Forward
    transfer is null if the task is unknown and each task has its own classes, because it then says nothing.
    ``continual.json`` in the run directory has these numbers, both accuracy matrices (null if not measured), the
    protocol, and the cost:

    * ``seconds``: training time of each task, including its beginning and end, without evaluation;
    * ``parameters``, and ``bytes`` of the module's parameters and buffers, and of the images of earlier tasks that it
      goes on reading from the data (``data``); ``on_top`` has the bytes of each part other than encoder, normalisation
      and head, such as a copy of the old network or stored images;
    * ``flops_per_image``: additions and multiplications of matrix products, convolutions and attention, forward and
      backward, in the first batch of the last epoch of each task, divided by the number of images from the data.
      Replayed images and old networks are included. Null if a part of the recipe is compiled, which hides the counts.

    ``pictures/accuracy-matrix.png`` shows the matrices, ``pictures/accuracy-over-tasks.png`` the accuracies over the
    tasks, and ``pictures/forgetting.png`` the forgetting of each task, if it was measured. The pictures are also logged
    to Weights & Biases if a ``WandbLogger`` is used. Nothing is written under ``fast_dev_run``.
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

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forgets the training of an earlier run."""
        if stage == "fit":
            self.seconds, self.flops_per_image, self.images = [], [], 0
            self._printed = ""

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
        """Restarts the clock."""
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

    # Tables and files

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
        if self._printed == (printed := json.dumps(report["matrix"])):  # a test after the training measures nothing new
            return
        self._printed = printed
        console = terminal()
        console.print(table(report))
        if report["expectation"]:
            console.print(report["expectation"])
        names = task_names(report["tasks"])
        save(heat_map(matrices, names), pictures / "accuracy-matrix.png", trainer)
        save(over_tasks(matrices, names), pictures / "accuracy-over-tasks.png", trainer)
        if not forgetting_by_task(matrices["aware"]).isnan().all():
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
            "view": view_of(tasks.scenario),
            "expectation": getattr(recipe, "expectation", None),
            "tasks": [[classes[label] for label in tasks.labels(task)] for task in range(len(tasks))],
            "tasks_learned": tasks_learned(matrices["aware"]),
            "measures": {
                view: {name: number(value) for name, value in measures(matrix, view, tasks.scenario).items()}
                for view, matrix in matrices.items()
            },
            "matrix": {
                view: [[number(value) for value in row] for row in matrix.tolist()] for view, matrix in matrices.items()
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
                "training_minutes": round(sum(self.seconds) / 60, 4),
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
