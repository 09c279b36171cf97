"""Continual learning against Avalanche, and against a bare loop: the time of a whole sequence and what it leaves known.

Split-Fashion-MNIST: all 60,000 training images as five tasks of two classes each, in the order of the classes, for a
multilayer perceptron of 784-400-400 units without batch norm, with Adam at 1e-3, made anew for each task, in one
process and in float32; one run of ours is in bf16-mixed, which Avalanche has not. Every round has a seed. Per round,
the runs below take turns; each begins with the same weights, has the images in memory, and makes as many steps with as
many images:

- rehearsal (scenario class, 500 images, as many of each class, and as many per step as new ones), LwF (scenario task,
  weight 1, T = 2, no warm-up, which Avalanche has not) and EWC (scenario task, exact Fisher information of 500 images):
  one Trainer.fit.
- Avalanche's Replay, LwF and EWC (penalties apart, as is its default; it takes the squared mean gradient of each batch
  for Fisher information, over all images, so that its lambda is another; both are the best of powers of ten on a tenth
  of the training images, with other seeds): normalised float images in a TensorDataset per task, no workers, no
  loggers, no metrics, the plain linear layer of its examples for all classes or a head per task.
- bare fine-tuning and bare rehearsal (scenario class): the lines of PyTorch that training consists of, on normalised
  float images. Nothing is checked, logged or stored. What a step costs at least.

Timed is training from the first to the last task with all that happens between: batches, the old network, Fisher
information, buffers. Not timed, and the same for all, is the one evaluation at the end: accuracy on the test images of
all tasks, knowing the task in the scenario task.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import Runs, medians, quiet, ratio, trainer, versions

TASKS, CLASSES = 5, 2  # CLASSES: of each task
HIDDEN = (400, 400)
LR = 1e-3  # van de Ven & Tolias, 2019, arXiv:1904.07734: Adam for split MNIST
BUFFER = 500
SCENARIOS = {"rehearsal": "class", "LwF": "task", "EWC": "task"}
AVALANCHE = {"rehearsal": "Avalanche's Replay", "LwF": "Avalanche's LwF", "EWC": "Avalanche's EWC"}
BARE = ("bare fine-tuning", "bare rehearsal")
IN_BF16 = "rehearsal in bf16-mixed"
COMPARED = (
    *AVALANCHE.items(),
    (IN_BF16, "Avalanche's Replay"),
    ("rehearsal", "bare rehearsal"),
    ("Avalanche's Replay", "bare rehearsal"),
    ("LwF", "bare fine-tuning"),
    ("EWC", "bare fine-tuning"),
)
IN_TABLE = COMPARED[:5]


class Task(NamedTuple):
    """The images of a task: normalised float [N, 1, 28, 28], with labels int64 [N] from 0 to 9."""

    image: Any
    label: Any
    test_image: Any
    test_label: Any


Predict = Callable[[Any, int], Any]  # normalised images [N, 1, 28, 28], and their task -> labels int64 [N]
Learn = Callable[[], Predict]  # trains on the whole sequence


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder that holds Fashion-MNIST")
    parser.add_argument("--batch", type=int, default=128, help="number of new images per step")
    parser.add_argument("--epochs", type=int, default=4, help="of each task")
    parser.add_argument("--rounds", type=int, default=3, help="how many sequences of each are timed, each with a seed")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--ewc-weight", type=float, default=1e6, help="lambda of our EWC")
    parser.add_argument("--fisher-images", type=int, default=500, help="of a task, for our EWC")
    parser.add_argument("--avalanche-ewc-lambda", type=float, default=1e7, help="lambda of Avalanche's EWC")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    quiet()
    torch.set_num_threads(options.threads)
    whole = read(options.root)
    tasks = apart(whole)
    seconds: Runs = {}
    accuracy: Runs = {}
    warmup = argparse.Namespace(**{**vars(options), "epochs": 1})
    for seed in range(-1, options.rounds):
        for name, learn in learners(warmup if seed < 0 else options, whole, tasks, max(seed, 0)).items():
            start = time.perf_counter()
            predict = learn()
            taken = time.perf_counter() - start
            if seed >= 0:
                seconds.setdefault(name, []).append(round(taken, 4))
                accuracy.setdefault(name, []).append(round(accuracy_on(tasks, predict), 4))
    return {
        "task": f"Split-Fashion-MNIST, 5 tasks, MLP 784-400-400, {options.epochs} epochs per task, batch "
        f"{options.batch}, {options.threads} CPU thread{'s' * (options.threads > 1)}",
        "unit": "seconds per sequence",
        "seconds": seconds,
        "median": medians(seconds),
        "accuracy": accuracy,
        "mean_accuracy": {name: round(statistics.mean(values), 4) for name, values in accuracy.items()},
        "compared": [
            {
                "what": name,
                "with": other,
                "median_ratio": ratio(seconds, name, other),
                "accuracy_difference": round(
                    statistics.mean(ours - theirs for ours, theirs in zip(accuracy[name], accuracy[other])), 4
                ),
            }
            for name, other in COMPARED
        ],
        "settings": {
            "buffer": BUFFER,
            "ewc_weight": options.ewc_weight,
            "fisher_images": options.fisher_images,
            "avalanche_ewc_lambda": options.avalanche_ewc_lambda,
            "seeds": list(range(options.rounds)),
        },
        "versions": versions("lightning", "avalanche-lib"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    accuracy = {name: f"{value:.1%}" for name, value in result["mean_accuracy"].items()}
    return [
        [
            f"{one['what']}, {result['task']} (accuracy {accuracy[one['what']]})",
            f"{one['with']} ({accuracy[one['with']]})",
            f"{one['median_ratio']:.2f} times its time",
        ]
        for one in result["compared"]
        if (one["what"], one["with"]) in IN_TABLE
    ]


def learners(options: argparse.Namespace, whole: Any, tasks: list[Task], seed: int) -> dict[str, Learn]:
    """What is compared; each begins with weights and random numbers that depend on the seed alone."""
    learn: dict[str, Learn] = {}
    for name, theirs in AVALANCHE.items():
        learn[name] = ours(options, name, whole, seed)
        learn[theirs] = avalanche(options, name, tasks, seed)
    learn[IN_BF16] = ours(options, "rehearsal", whole, seed, "bf16-mixed")
    for name in BARE:
        learn[name] = bare(options, tasks, seed, BUFFER if name == "bare rehearsal" else 0)
    return learn


def read(root: Path) -> Any:
    """The images: Splits without a validation split."""
    from datamodules import FashionMNIST

    data = FashionMNIST(root, val_fraction=0.0)
    data.setup()
    return data.splits


def apart(whole: Any) -> list[Task]:
    """The images of each task, normalised by mean and standard deviation of those of the first, as ours are."""

    def of(split: Any, task: int) -> tuple[Any, Any]:
        positions = (split.label // CLASSES == task).nonzero().flatten()
        return split.images(positions).float() / 255, split.label[positions]

    first, _ = of(whole.train, 0)
    mean, std = first.mean(), first.std(correction=0)
    tasks = []
    for number in range(TASKS):
        (image, label), (test_image, test_label) = of(whole.train, number), of(whole.test, number)
        tasks.append(Task((image - mean) / std, label, (test_image - mean) / std, test_label))
    return tasks


def accuracy_on(tasks: list[Task], predict: Predict) -> float:
    """The mean over the tasks of the share of their test images that are classified correctly."""
    import torch

    with torch.no_grad():
        shares = [
            (predict(each.test_image, task) == each.test_label).double().mean() for task, each in enumerate(tasks)
        ]
    return statistics.mean(share.item() for share in shares)


def network(seed: int) -> tuple[Any, list[Any]]:
    """The encoder, and a linear layer for the classes of each task."""
    import torch

    from recipes.nn import MLP

    torch.manual_seed(seed)
    encoder = MLP(28, hidden=HIDDEN, batch_norm=False)
    return encoder, [torch.nn.Linear(encoder.feature_dim, CLASSES) for _ in range(TASKS)]


def one_head(seed: int) -> Any:
    """The network with one linear layer for all classes: the same numbers."""
    import torch

    encoder, heads = network(seed)
    whole = torch.nn.Linear(encoder.feature_dim, TASKS * CLASSES)
    with torch.no_grad():
        whole.weight.copy_(torch.cat([head.weight for head in heads]))
        whole.bias.copy_(torch.cat([head.bias for head in heads]))
    return torch.nn.Sequential(copy.deepcopy(encoder.network), whole)


# Ours


def ours(options: argparse.Namespace, name: str, whole: Any, seed: int, precision: str = "32-true") -> Learn:
    import torch
    from lightning.pytorch import seed_everything

    import recipes
    from datamodules import TaskSequence

    encoder, heads = network(seed)
    scenario: Any = SCENARIOS[name]
    data = TaskSequence(
        _training_images(whole),
        num_tasks=TASKS,
        scenario=scenario,
        epochs_per_task=options.epochs,
        batch_size=options.batch,
    )
    data.setup()
    optimizer: Any = lambda p: torch.optim.Adam(p, lr=LR)  # noqa: E731
    recipe: Any
    if name == "rehearsal":
        recipe = recipes.Rehearsal(encoder, data.tasks, BUFFER, "class-balanced", optimizer=optimizer)
    elif name == "LwF":
        recipe = recipes.LwF(encoder, data.tasks, warmup_epochs=0, optimizer=optimizer)
    else:
        recipe = recipes.EWC(
            encoder, data.tasks, ewc_weight=options.ewc_weight, fisher_images=options.fisher_images, optimizer=optimizer
        )
    for head, initial in zip(recipe.head.heads, heads):
        head.load_state_dict(initial.state_dict())

    def learn() -> Predict:
        seed_everything(seed, verbose=False)
        trainer(precision=precision, max_epochs=-1).fit(recipe, data)
        recipe.eval()

        def predict(image: Any, task: int) -> Any:
            logits = recipe.unmasked_logits(recipe.encoder(image))
            labels = slice(task * CLASSES, (task + 1) * CLASSES) if scenario == "task" else slice(None)
            return logits[:, labels].argmax(1) + (labels.start or 0)

        return predict

    return learn


def _training_images(whole: Any) -> Any:
    """A DataModule without test images, so that nothing is evaluated in training, as nothing is by the others."""
    from datamodules.base import ImageDataModule, Splits

    class TrainingImages(ImageDataModule):
        num_classes = TASKS * CLASSES

        def load(self) -> Splits:
            return Splits(whole.class_names, whole.train)

    return TrainingImages()


# Avalanche


def avalanche(options: argparse.Namespace, name: str, tasks: list[Task], seed: int) -> Learn:
    import torch
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import EWC, LwF, Replay

    knows_task = SCENARIOS[name] == "task"
    stream = _stream(tasks, knows_task)
    model = _multi_head(seed) if knows_task else one_head(seed)
    method: dict[str, tuple[Any, dict[str, Any]]] = {
        "rehearsal": (Replay, {"mem_size": BUFFER}),
        "LwF": (LwF, {"alpha": 1.0, "temperature": 2.0}),
        "EWC": (EWC, {"ewc_lambda": options.avalanche_ewc_lambda}),
    }
    kind, settings = method[name]

    def learn() -> Predict:
        torch.manual_seed(seed)
        strategy = kind(
            model=model,
            optimizer=torch.optim.Adam(model.parameters(), lr=LR),
            criterion=torch.nn.CrossEntropyLoss(),
            train_mb_size=options.batch,
            train_epochs=options.epochs,
            evaluator=EvaluationPlugin(),
            **settings,
        )
        for experience in stream:
            strategy.train(experience, num_workers=0, drop_last=True, reset_optimizer_state=True)
        model.eval()
        if knows_task:
            return lambda image, task: model(image, task).argmax(1) + task * CLASSES
        return lambda image, task: model(image).argmax(1)

    return learn


def _stream(tasks: list[Task], knows_task: bool) -> Any:
    """The tasks as Avalanche's experiences; those that are known have labels of their own, from 0."""
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
    from avalanche.benchmarks.utils import (
        ConstantSequence,
        DataAttribute,
        TaskAwareSupervisedClassificationDataset,
        TaskLabels,
    )
    from avalanche.benchmarks.utils.classification_dataset import ClassificationDataset
    from torch.utils.data import TensorDataset

    datasets = []
    for number, task in enumerate(tasks):
        label = task.label % CLASSES if knows_task else task.label
        attributes = [DataAttribute(label.tolist(), "targets")]
        if knows_task:
            attributes.append(TaskLabels(ConstantSequence(number, len(label))))
        kind = TaskAwareSupervisedClassificationDataset if knows_task else ClassificationDataset
        datasets.append(kind([TensorDataset(task.image, label)], data_attributes=attributes))
    stream = benchmark_from_datasets(train=datasets)
    return with_classes_timeline(with_task_labels(stream) if knows_task else stream).streams["train"]


def _multi_head(seed: int) -> Any:
    """The network with a head per task, which grows as Avalanche has it grow, with the weights of ours."""
    from avalanche.models import MultiHeadClassifier, MultiTaskModule

    encoder, heads = network(seed)

    class Heads(MultiHeadClassifier):
        def __init__(self) -> None:
            super().__init__(encoder.feature_dim, CLASSES, masking=False)  # no unit of a head is ever unused
            self._begin("0")

        def adaptation(self, experience: Any) -> None:
            new = str(experience.task_label)
            known = new in self.classifiers
            super().adaptation(experience)
            if not known:
                self._begin(new)

        def _begin(self, task: str) -> None:
            self.classifiers[task].classifier.load_state_dict(heads[int(task)].state_dict())

    class MultiTask(MultiTaskModule):
        def __init__(self) -> None:
            super().__init__()
            self.features = copy.deepcopy(encoder.network)
            self.classifier = Heads()

        def forward(self, image: Any, task_labels: Any) -> Any:
            return self.classifier(self.features(image), task_labels)

    return MultiTask()


# Bare


def bare(options: argparse.Namespace, tasks: list[Task], seed: int, buffer: int) -> Learn:
    """Fine-tuning, or with a buffer rehearsal."""
    import torch
    from torch.nn import functional as F

    model = one_head(seed)

    def learn() -> Predict:
        torch.manual_seed(seed)
        kept: list[tuple[Any, Any]] = []  # of each task, in random order
        for number, task in enumerate(tasks):
            optimizer = torch.optim.Adam(model.parameters(), lr=LR)
            memory = [torch.cat(field) for field in zip(*kept)]
            for _ in range(options.epochs):
                for rows in torch.randperm(len(task.label)).split(options.batch):
                    if len(rows) < options.batch:
                        continue
                    image, label = task.image[rows], task.label[rows]
                    if memory:
                        again = torch.randperm(len(memory[1]))[: options.batch]
                        image = torch.cat([image, memory[0][again]])
                        label = torch.cat([label, memory[1][again]])
                    optimizer.zero_grad()
                    F.cross_entropy(model(image), label).backward()
                    optimizer.step()
            if buffer:
                share = buffer // (number + 1)
                rows = torch.randperm(len(task.label))[:share]
                kept = [(image[:share], label[:share]) for image, label in kept]
                kept.append((task.image[rows], task.label[rows]))
        return lambda image, task: model(image).argmax(1)

    return learn
