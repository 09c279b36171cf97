"""Whole runs of ``recipes fit`` in processes of their own, and how far apart what two of them left is.

One packaged config ``*-digits`` of each recipe is a case, so that a recipe is covered as soon as it has one.
"""

import csv
import json
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback
from torch import Tensor

from recipes.callbacks import Pictures
from recipes.cli import main
from recipes.cli.catalogue import config_file, config_names
from tests.helpers.drawing import draw_nothing
from tests.helpers.processes import run


def packaged(config: str) -> dict[str, Any]:
    """What a packaged config says."""
    return yaml.safe_load(config_file(config).read_text())


NOT_COVERED = {  # recipe: why it cannot be
    "SVM": "it takes no steps and has no schedule; tests/transfer/test_svm.py compares one process with two",
}
_OF_RECIPES = {
    packaged(name)["model"]["class_path"]: name
    for name in config_names()
    if name.endswith("-digits") and not name.startswith("teacher-")  # with dropout, runs differ
}
RECIPES = sorted(_OF_RECIPES.values())  # a config of each recipe
CASES = [name for recipe, name in _OF_RECIPES.items() if recipe.rpartition(".")[2] not in NOT_COVERED]

IN_TASKS = {case for case in CASES if packaged(case)["data"]["class_path"] == "datamodules.TaskSequence"}

STEPS, SAVE_EVERY = 16, 4
ACCUMULATED = 2  # batches of a step
BATCHES = 13  # of an epoch, whose last step has one
STEPS_OF_EPOCH = math.ceil(BATCHES / ACCUMULATED)
MIDDLE = "middle.ckpt"
ZERO = 1e-14  # largest magnitude of a tensor in float64 that counts as 0 but for rounding
KILLED = {"epoch": 1, "batch": 7}  # within the 11th step: those since the 8th are lost
OPTIONS = {
    "trainer.precision": "64-true",
    "trainer.accelerator": "cpu",
    "trainer.max_steps": STEPS,
    "trainer.accumulate_grad_batches": ACCUMULATED,
    "trainer.check_val_every_n_epoch": 1,
    "trainer.log_every_n_steps": 1,
    "trainer.limit_test_batches": 0,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "checkpoint.every_n_train_steps": SAVE_EVERY,
    "model.scheduler": "recipes.optim.WarmupCosine",
    "model.scheduler.warmup_epochs": 1,  # a config's may be longer than this run
    "trainer.limit_train_batches": BATCHES,  # of 39
    "data.batch_size": 32,
}
TEACHER = "supervised-digits"  # whose run teaches those that need a teacher
_LAYERS = [
    {"loss": {"class_path": "losses.Hint"}, "student_layer": "feature"},
    {"loss": {"class_path": "recipes.distillation.ContrastiveDistillation", "init_args": {"negatives": 64}}},
]
OF_CONFIG = {
    "lwf-split-digits": {"model.warmup_epochs": 0},
    "deit-digits": {"model.encoder.image_size": 8},
    "distill-digits": {
        "model.encoder.image_size": 8,
        "model.teacher_logits": "online",
        "model.views": "recipes.augment.HandwritingViews",
        "model.layer_losses": json.dumps(_LAYERS),
    },
}
OF_DATA = {
    "Digits": {"data.size": 8},
    "SemiSupervised": {"data.base.size": 8, "data.labelled_per_batch": 8},
    # a task has about 250 images: the run is killed in the middle of the second
    "TaskSequence": {
        "data.epochs_per_task": 1,
        "data.batch_size": 18,
        "trainer.limit_train_batches": "null",
        # where a task begins, distillation has gradients that are 0 but for rounding, and Adam makes steps of them
        "model.optimizer": "torch.optim.SGD",
        "model.optimizer.lr": 0.1,
    },
}

OF_STEPS = ("trainer.max_steps", "model.scheduler")

# Paths, times, and the losses of the first device, which a picture shows
OF_ONE_RUN = {"config", "dirpath", "best_model_path", "seconds", "train/data_wait", "losses"}


def arguments(config: str, folder: Path, common: dict[str, Any], changed: dict[str, Any]) -> list[str]:
    """The words of ``recipes fit`` on small images.

    Args:
        config: name of the config.
        folder: where the run goes.
        common: options of all configs, which those of a config and of its data beat.
        changed: options that beat these.
    """
    images = OF_DATA[packaged(config)["data"]["class_path"].rpartition(".")[2]]
    options = {"config": config, **common, **images, **OF_CONFIG.get(config, {}), "runs": folder, **changed}
    if config.startswith("svm"):  # it takes no steps
        options = {name: value for name, value in options.items() if name not in OF_STEPS}
    return ["fit", *(f"--{name}={value}" for name, value in options.items())]


class Death:
    """Kills the process that writes it into a file."""

    def __reduce__(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Interference(Callback):
    """Kills the process before it trains on a batch or while it saves, and leaves out pictures, which take too long.

    A run that is not killed keeps what it would have left where it is (``Run.middle``).

    Args:
        epoch: of the batch.
        batch: number of the batch in the epoch.
        save: number of the checkpoint, from 1.
        patience: an option that its state has beside a counter, as that of ``EarlyStopping``.
    """

    def __init__(self, epoch: int = -1, batch: int = -1, save: int = -1, patience: int = 1) -> None:
        self.last_batch = (epoch, batch)
        self.saves = save
        self.patience = patience
        self.batches = 0

    def state_dict(self):
        return {"patience": self.patience, "batches": self.batches}

    def load_state_dict(self, state_dict):
        self.patience, self.batches = state_dict["patience"], state_dict["batches"]

    def on_train_batch_end(self, *_):
        self.batches += 1

    def setup(self, trainer, pl_module, stage):
        for callback in trainer.callbacks:
            if isinstance(callback, Pictures):
                callback.on_fit_end = lambda *_: None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == tuple(KILLED.values()) and trainer.is_global_zero:
            last = Path(trainer.checkpoint_callback.dirpath, "last.ckpt")
            if last.exists():
                shutil.copy(last, last.with_name(MIDDLE))
        if (trainer.current_epoch, batch_idx) == self.last_batch:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.saves -= 1
        if self.saves == 0:
            checkpoint["death"] = Death()

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.log("lr", torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float64))


@dataclass(frozen=True)
class Run:
    """What a run left."""

    directory: Path

    @property
    def path(self) -> Path:
        return self.directory / "checkpoints" / "last.ckpt"

    @property
    def middle(self) -> Path:
        """The checkpoint that it would have left, had it been killed."""
        return self.path.with_name(MIDDLE)

    @cached_property
    def checkpoint(self) -> dict[str, Any]:
        return torch.load(self.path, weights_only=True)

    @cached_property
    def rows(self) -> list[dict[str, str]]:
        """Those of metrics.csv."""
        with (self.directory / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    def column(self, name: str) -> list[float]:
        """What was logged under a name."""
        return [float(row[name]) for row in self.rows if row.get(name)]


class Runs:
    """Runs the command, once for each set of arguments.

    Args:
        folder: where all runs go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[tuple[Any, ...], Run] = {}

    def __call__(
        self,
        config: str,
        processes: int = 1,
        killed: dict[str, int] | None = None,
        after: Path | None = None,
        **changed: Any,
    ) -> Run:
        """Gives what ``recipes fit --config <config>`` left.

        Args:
            config: name of the config.
            processes: each is a device.
            killed: where all of them are: the arguments of ``Interference``.
            after: checkpoint of the run to go on with.
            changed: options that differ from ``OPTIONS``, with ``__`` for the dot.
        """
        key = (config, processes, str(killed), after, *sorted(changed.items()))
        if key not in self.done:
            runs = Path(tempfile.mkdtemp(dir=self.folder))
            common = {"trainer.callbacks": f"{__name__}.Interference", **OPTIONS}
            options: dict[str, Any] = {"trainer.devices": processes}
            options |= {name.replace("__", "."): value for name, value in changed.items()}
            if "teacher" in packaged(config)["model"]["init_args"]:
                options["model.teacher"] = self(TEACHER).path
            options |= {"trainer.strategy": "ddp"} if processes > 1 else {}
            options |= {"ckpt_path": after} if after else {}
            options |= {f"trainer.callbacks.{name}": value for name, value in (killed or {}).items()}
            ended = run(_undrawn, arguments(config, runs, common, options), processes=processes)
            assert ended == [signal.SIGKILL if killed else None] * processes
            (metrics,) = runs.glob("*/*/metrics.csv")
            self.done[key] = Run(metrics.parent)
        return self.done[key]


def _undrawn(args: list[str]) -> None:
    draw_nothing()
    main(args)


def difference(run: Run, reference: Run) -> float:
    """How far apart two runs ended: 0 where every number is the same.

    Compared are their last checkpoints (weights, buffers, optimisers, schedules, progress of loops and data, callbacks)
    and the rows of metrics.csv from the first of ``run`` on, which may have been resumed.

    Returns:
        The largest, over all tensors and columns, of max |a - b| / max |b|; infinite where shapes, types, integers,
        texts, or what was logged when differ.
    """
    start = int(run.rows[0]["step"])
    ours, theirs = (
        dict(_leaves({"checkpoint": one.checkpoint, "metrics": _columns(one, start)})) for one in (run, reference)
    )
    if ours.keys() != theirs.keys():
        return math.inf
    return max(_relative(ours[name], theirs[name], str(name[-1])) for name in ours)


def _columns(run: Run, start: int) -> dict[str, Tensor]:
    rows = [row for row in run.rows if int(row["step"]) >= start]
    columns = {name: torch.tensor([float(row[name] or "nan") for row in rows], dtype=torch.float64) for name in rows[0]}
    return {name: column for name, column in columns.items() if not column.isnan().all()}


def _leaves(tree: Any, *place: Any) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(tree, dict | list | tuple):
        for name, part in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if name not in OF_ONE_RUN:
                yield from _leaves(part, *place, name)
    else:
        yield place, tree


def _relative(a: Any, b: Any, name: str = "") -> float:
    a, b = (torch.tensor(x, dtype=torch.float64) if isinstance(x, float) else x for x in (a, b))
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return 0.0 if a == b else math.inf
    if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return math.inf
    a, b = a.nan_to_num(), b.nan_to_num()
    if torch.equal(a, b):
        return 0.0
    if not a.is_floating_point():
        return math.inf
    # the running mean of what another batch norm has centred is 0 but for rounding, and has no scale of its own
    centred = name.endswith("running_mean") and max(a.abs().max(), b.abs().max()) < ZERO
    largest = 1.0 if centred else b.abs().max().item()
    return (a - b).abs().max().item() / largest
