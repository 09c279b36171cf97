"""Runs of an earlier commit, kept so that a change of the code can be held against them.

``python -m tests.project.before FOLDER`` makes them with the code that it runs on. Each recipe has a checkpoint of
three steps, and the result that this code comes to from it: the predictions for some test images, and the weights and
the evaluation after three more steps, or after the last task. All runs are in float64 and have very small networks.
"""

import csv
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipes.cli import main
from tests.helpers.drawing import draw_nothing
from tests.helpers.processes import run

STEPS = 3  # before the checkpoint, and again after it
TASKS = 5  # of a sequence, each of one step: the run ends with them
CUMULATIVE = ("joint-split-digits",)  # whose later tasks have more steps
IMAGES = 16
COMMON = {
    "trainer.precision": "64-true",
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.log_every_n_steps": 1,
    "trainer.check_val_every_n_epoch": 1,
    "pictures.points": 20,
    "runs": "runs",
}
_CONVNET = {"model.encoder.widths": "[4,8]", "data.size": 8, "data.batch_size": 256}
_MLP = {"model.encoder.hidden": "[12,12]", "data.batch_size": 128, "data.epochs_per_task": 1}
_PROJECTION = {"model.projection_dim": 8, "model.projection_hidden_dim": 8}
_SHORT = {"model.scheduler": "recipes.optim.WarmupCosine", "model.scheduler.warmup_epochs": 0.2}
TEACHER = "supervised-digits"
REPORTS = {"evaluation": ("accuracy",), "classes": ("confusion", "macro"), "continual": ("matrix",)}
CASES: dict[str, dict[str, Any]] = {
    "byol-digits": _CONVNET | _PROJECTION | _SHORT,
    "deit-digits": {
        "model.encoder.image_size": 8,
        "model.encoder.dim": 8,
        "model.encoder.depth": 1,
        "model.encoder.heads": 2,
        "data.size": 8,
        "data.batch_size": 256,
    }
    | _SHORT,
    "derpp-split-digits": _MLP,
    "distill-digits": {
        "model.encoder.image_size": 8,
        "model.encoder.hidden": "[12,12]",
        "model.teacher_logits": "online",
        "model.views": "recipes.augment.HandwritingViews",
        "model.layer_losses": json.dumps([{"loss": {"class_path": "losses.Hint"}, "student_layer": "feature"}]),
        "data.size": 8,
        "data.batch_size": 256,
    }
    | _SHORT,
    "ewc-split-digits": _MLP,
    "feature-extraction-split-digits": _MLP,
    "finetune-digits": _CONVNET | _SHORT,
    "finetuning-split-digits": _MLP,
    "icarl-split-digits": _MLP,
    "instance-discrimination-digits": _CONVNET | {"model.projection_dim": 4, "model.negatives": 64} | _SHORT,
    "joint-split-digits": _MLP,
    "linear-probe-digits": _CONVNET | _SHORT,
    "lwf-split-digits": _MLP | {"model.warmup_epochs": 0},
    "mean-teacher-digits": {"model.encoder.widths": "[4,8]", "data.base.size": 8} | _SHORT,
    "moco-v2-digits": _CONVNET | _PROJECTION | _SHORT,
    "rehearsal-split-digits": _MLP,
    "si-split-digits": _MLP,
    "simclr-digits": _CONVNET | _PROJECTION | _SHORT,
    "supervised-digits": _CONVNET | _SHORT,
    "svm-digits": {"model.encoder.widths": "[4,8]", "data.size": 8},
}


def recipes(folder: Path, command: str, **options: Any) -> Path:
    """Runs the command in a folder; returns the directory of the run."""
    before = set(folder.glob("runs/*/*"))
    run(_inside, folder, [command, *(f"--{name}={value}" for name, value in options.items())])
    (directory,) = set(folder.glob("runs/*/*")) - before
    return directory


def _inside(folder: Path, args: list[str]) -> None:
    os.chdir(folder)
    draw_nothing()
    main(args)


def options_of(case: str) -> dict[str, Any]:
    """Those that make the run of a case small."""
    teacher = {"model.teacher": "teacher.ckpt"} if case.startswith(("deit", "distill")) else {}
    return {"config": case, **COMMON, **CASES[case], **teacher}


def outcome(folder: Path, checkpoint: Path, case: str) -> dict[str, Any]:
    """What becomes of a checkpoint: predictions, and the state and the evaluation after more steps.

    Args:
        folder: where the command runs.
        checkpoint: to start from.
        case: whose it is.
    """
    predicted = recipes(folder, "predict", ckpt_path=checkpoint, **{"trainer.limit_predict_batches": 1})
    with np.load(predicted / "predictions.npz") as arrays:
        predictions = {name: torch.from_numpy(arrays[name][:IMAGES]) for name in arrays.files}
    last = TASKS if "split" in case and case not in CUMULATIVE else 2 * STEPS
    length = {} if case == "svm-digits" else {"trainer.max_steps": last}
    resumed = recipes(folder, "fit", ckpt_path=checkpoint, **length)
    newest = resumed / "checkpoints" / "last.ckpt"  # not there if the run was over
    state = torch.load(newest if newest.is_file() else checkpoint, weights_only=True)
    with (resumed / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    metrics = {name: [float(row[name]) for row in rows if row.get(name)] for name in rows[0]}
    reports = {}
    for name, keys in {
        "evaluation": ("accuracy",),
        "classes": ("confusion", "macro"),
        "continual": ("matrix",),
    }.items():
        if (path := resumed / f"{name}.json").is_file():
            report = json.loads(path.read_text())
            reports[name] = {key: report[key] for key in keys}
    return {
        "predictions": predictions,
        "state_dict": state["state_dict"],
        "steps": state["global_step"],
        "metrics": {name: values for name, values in metrics.items() if values and name != "train/data_wait"},
        "reports": json.dumps(reports),
    }


def make(folder: Path, *cases: str) -> None:
    """Makes these cases, or all; those of a teacher need it among them."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for case in sorted(cases or CASES, key=lambda case: case != TEACHER):
            length = {} if case == "svm-digits" else {"trainer.max_steps": STEPS, "trainer.limit_test_batches": 0}
            directory = recipes(work, "fit", **options_of(case), **length)
            checkpoint = work / f"{case}.ckpt"
            state = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)
            torch.save(_without(str(work.resolve()), state), checkpoint)
            if case == TEACHER:
                shutil.copy(checkpoint, work / "teacher.ckpt")
            torch.save(outcome(work, checkpoint, case), folder / f"{case}.pt")
            shutil.copy(checkpoint, folder)
            print(case, (folder / f"{case}.pt").stat().st_size, checkpoint.stat().st_size, flush=True)


def _without(place: str, tree: Any) -> Any:
    """A tree whose texts do not name a place of this machine."""
    if isinstance(tree, dict):
        return {key: _without(place, value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_without(place, value) for value in tree)
    return tree.replace(f"{place}/", "") if isinstance(tree, str) else tree


if __name__ == "__main__":
    make(Path(sys.argv[1]), *sys.argv[2:])
