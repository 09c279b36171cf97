"""A training step of distillation against one on labels alone plus the teacher's forward, and against torchdistill.

ResNet-56, with random weights, teaches ResNet-20 on 32 × 32 RGB pictures in bf16-mixed, with T = 4 and weights of 0.9
for the teacher and 0.1 for the labels. Five loops of one process make a step each in turn, so that all have the same
machine:

- distillation: TeacherStudent, whose teacher answers at every step. This is the whole step of the Trainer: the batch
  from memory, the views (crop and flip), forward, backward, SGD, logging every 10 steps, and all hooks.
- cached logits: the same, but that the teacher's logits are from a file, and the views the same at every epoch.
- labels alone: Supervised, with the same data, views, encoder, optimiser, Trainer and logging.
- teacher alone: encoder and linear layer of a copy of the teacher, on normalised float images that are ready, in eval
  mode, under no_grad and autocast.
- torchdistill: its DistillationBox with WeightedSumLoss and KDLoss, in the training loop of its examples, with their
  meters. It gets the same batches and views, normalised once, and copies of the same networks in the same memory
  format; and the same optimiser. It has no autocast of its own on a CPU, and leaves it to its user to put the teacher
  into eval mode: both are done here.
"""

import argparse
import copy
import itertools
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.common import Runs, medians, quiet, ratio, trainer, versions

TEMPERATURE, SOFT_WEIGHT = 4.0, 0.9
SGD: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True}  # as Supervised has it
BOTH = "labels alone + teacher alone"
COMPARED = (
    ("distillation", BOTH),
    ("cached logits", "labels alone"),
    ("cached logits", "distillation"),
    ("distillation", "torchdistill"),
)

StepDone = Callable[[], None]
Loop = Callable[[StepDone], None]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data/cifar10-jpeg"), help="folder of class folders")
    parser.add_argument("--batch", type=int, default=128, help="number of images")
    parser.add_argument("--rounds", type=int, default=60, help="how many steps of each are timed")
    parser.add_argument("--warmup", type=int, default=5, help="how many steps of each before them are not")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from lightning.pytorch import seed_everything

    from recipes import Supervised
    from recipes.nn import ResNet

    quiet()
    torch.set_num_threads(options.threads)
    seed_everything(0, verbose=False)
    data = _data(options)
    data.setup()
    teacher, student = (Supervised(ResNet(depth), data.num_classes, **_optimisation()) for depth in (56, 20))
    for recipe in (teacher, student):
        recipe.normalize.set(data.mean, data.std)
    with tempfile.TemporaryDirectory() as folder:
        loops: dict[str, Loop] = {
            "distillation": _distillation(options, teacher, student, folder, "online"),
            "cached logits": _distillation(options, teacher, student, folder, "cached"),
            "labels alone": _trained(options, copy.deepcopy(student), folder),
            "teacher alone": _teacher_alone(options, teacher),
            "torchdistill": _torchdistill(options, teacher, student, data),
        }
        seconds = step_by_step(loops, options.warmup)
    seconds[BOTH] = [a + b for a, b in zip(seconds["labels alone"], seconds["teacher alone"])]
    return {
        "task": f"ResNet-56 to ResNet-20, batch {options.batch}, bf16-mixed, {_threads(options.threads)}",
        "unit": "seconds per step",
        "seconds": seconds,
        "median": medians(seconds),
        "compared": [
            {
                "what": name,
                "with": other,
                "median_ratio": ratio(seconds, name, other),
                "ratio_quartiles": _quartiles(seconds[name], seconds[other]),
                "ratio_of_sums": round(sum(seconds[name]) / sum(seconds[other]), 4),
            }
            for name, other in COMPARED
        ],
        "versions": versions("lightning", "torchdistill"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    whats = {"distillation": "step of distillation", "cached logits": "step of distillation with cached logits"}
    withs = {
        BOTH: "step on labels alone + the teacher's forward",
        "labels alone": "step on labels alone",
        "distillation": "running the teacher at every step",
        "torchdistill": "torchdistill's",
    }
    return [
        [f"{whats[one['what']]}, {result['task']}", withs[one["with"]], f"{one['median_ratio']:.2f} times its time"]
        for one in result["compared"]
    ]


def step_by_step(loops: dict[str, Loop], warmup: int) -> Runs:
    """The seconds of each step of each loop but the first ``warmup``; the loops make a step each in turn.

    Every loop has a thread, of which one runs at a time, and calls its argument at the end of each step. All must have
    as many steps. Their errors come out.
    """
    names = list(loops)
    turn = {name: threading.Semaphore(0) for name in names}
    seconds: Runs = {name: [] for name in names}
    errors: list[BaseException] = []

    def whole(name: str, following: str) -> None:
        resumed = 0.0

        def wait() -> None:
            nonlocal resumed
            turn[name].acquire()
            if errors:
                raise InterruptedError
            resumed = time.perf_counter()

        def step_done() -> None:
            seconds[name].append(round(time.perf_counter() - resumed, 6))
            turn[following].release()
            wait()

        try:
            wait()
            loops[name](step_done)
        except BaseException as error:
            errors.append(error)
        finally:
            turn[following].release()

    with ThreadPoolExecutor(len(names)) as threads:
        threads.map(whole, names, names[1:] + names[:1])
        turn[names[0]].release()
    if errors:
        raise errors[0]
    return {name: values[warmup:] for name, values in seconds.items()}


def _threads(number: int) -> str:
    return f"{number} CPU thread{'s' * (number > 1)}"


def _quartiles(ours: list[float], theirs: list[float]) -> list[float]:
    return [round(value, 4) for value in statistics.quantiles((a / b for a, b in zip(ours, theirs)), n=4)]


def _optimisation() -> dict[str, Any]:
    """SGD without a schedule, whose warm-up is longer than this."""
    import torch

    return {"optimizer": lambda p: torch.optim.SGD(p, **SGD), "scheduler": None, "lr_batch_size": None}


def _data(options: argparse.Namespace) -> Any:
    from datamodules import ImageFolder

    return ImageFolder(options.root, image_size=32, cache=True, batch_size=options.batch)


def _distillation(options: argparse.Namespace, teacher: Any, student: Any, folder: str, logits: Any) -> Loop:
    from recipes import TeacherStudent
    from recipes.augment import SupervisedViews
    from recipes.distillation import Teacher

    recipe = TeacherStudent(
        copy.deepcopy(student.encoder),
        student.head.out_features,
        Teacher([copy.deepcopy(teacher)], ["random weights"]),
        temperature=TEMPERATURE,
        soft_weight=SOFT_WEIGHT,
        teacher_logits=logits,
        logits_folder=folder,
        views=SupervisedViews(),
        **_optimisation(),
    )
    return _trained(options, recipe, folder)


def _trained(options: argparse.Namespace, recipe: Any, folder: str) -> Loop:
    from lightning.pytorch.callbacks import LambdaCallback
    from lightning.pytorch.loggers import CSVLogger

    def loop(step_done: StepDone) -> None:
        trainer(
            max_steps=options.warmup + options.rounds,
            log_every_n_steps=10,
            logger=CSVLogger(folder),
            callbacks=[LambdaCallback(on_train_batch_end=lambda *_: step_done())],
        ).fit(recipe, _data(options))

    return loop


def _teacher_alone(options: argparse.Namespace, teacher: Any) -> Loop:
    import torch

    network = _network(teacher).eval()
    image = torch.randn(options.batch, 3, 32, 32)

    def loop(step_done: StepDone) -> None:
        for _ in range(options.warmup + options.rounds):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                network(image)
            step_done()

    return loop


def _torchdistill(options: argparse.Namespace, teacher: Any, student: Any, data: Any) -> Loop:
    import torch
    from torchdistill.core.distillation import get_distillation_box
    from torchdistill.misc.log import MetricLogger, SmoothedValue

    kd = {
        "student_module_path": ".",
        "student_module_io": "output",
        "teacher_module_path": ".",
        "teacher_module_io": "output",
        "temperature": TEMPERATURE,
        "alpha": 1 - SOFT_WEIGHT,  # of the labels
    }
    config = {
        "num_epochs": 1,
        "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only"},
        "optimizer": {"key": "SGD", "kwargs": {**SGD}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": kd}, "weight": 1.0}}},
        },
    }

    def loop(step_done: StepDone) -> None:
        networks = _network(teacher).eval(), _network(student)
        box = get_distillation_box(*networks, {}, config, torch.device("cpu"), None, False, 1)
        box.train_data_loader = _Views(student, data, options.warmup + options.rounds)
        box.pre_epoch_process(epoch=0)
        log = MetricLogger(delimiter="  ")
        log.add_meter("lr", SmoothedValue(window_size=1, fmt="{value}"))
        log.add_meter("img/s", SmoothedValue(window_size=10, fmt="{value}"))
        for image, label, more in log.log_every(box.train_data_loader, 10, "Epoch: [0]"):
            start = time.time()
            with torch.autocast("cpu", torch.bfloat16):
                loss = box.forward_process(image, label, more)
            box.post_forward_process(loss=loss)
            log.update(loss=loss.item(), lr=box.optimizer.param_groups[0]["lr"])
            log.meters["img/s"].update(len(image) / (time.time() - start))
            if not torch.isfinite(loss):
                raise ValueError(f"torchdistill's loss is {loss.item()}")
            step_done()

    return loop


def _network(recipe: Any) -> Any:
    """A copy of the encoder and the linear layer, which takes normalised images."""
    from torch import nn

    return nn.Sequential(copy.deepcopy(recipe.encoder), copy.deepcopy(recipe.head))


class _Views:
    """So many batches of normalised views, labels, and what torchdistill calls a supplement."""

    def __init__(self, recipe: Any, data: Any, steps: int) -> None:
        self.recipe, self.data, self.steps = recipe, data, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        loader = self.data.train_dataloader()
        again = itertools.chain.from_iterable(enumerate(loader) for _ in itertools.count())
        for number, batch in itertools.islice(again, self.steps):
            view = self.recipe.views(batch.image, self.recipe.key(batch).fold_in(number))
            yield self.recipe.normalize(view), batch.label, {}
