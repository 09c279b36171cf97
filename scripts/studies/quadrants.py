"""The four quadrants of transfer learning on real images: five strategies, and what the advisor says beforehand.

Every pair of a source and a target is measured with 10, 100 and all training images of each class of the target. The
source encoder is trained here, by the recipe ``Supervised``, anew for every seed.
"""

import dataclasses
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from recipes.evaluation.text_tables import cell, markdown
from recipes.launch.results import machine, summary, versions, write
from studies.base import RESULTS

RESULT = RESULTS / "quadrants.json"
SIZES: dict[str, int | None] = {"10": 10, "100": 100, "all": None}  # images per class
STEPS = {"10": 400, "100": 800, "all": 1600}  # of the optimiser
SOURCE_EPOCHS, SOURCE_STEPS = 6, 600  # at least as many of both

VEHICLES = ("airplane", "automobile", "ship", "truck")
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
CLOTHES = ("T-shirt/top", "Pullover", "Sandal", "Sneaker", "Bag")
OTHER_CLOTHES = ("Trouser", "Dress", "Coat", "Shirt", "Ankle boot")


@dataclass(frozen=True)
class Pair:
    """A source and a target.

    Attributes:
        source: makes the DataModule of the source from the folder of the data.
        target: the same for the target, with at most so many images per class.
        encoder: makes the network.
        views: makes the random views, of both.
    """

    source: Callable[[Path], Any]
    target: Callable[[Path, int | None], Any]
    encoder: Callable[[], Any]
    views: Callable[[], Any]


def _cifar(root: Path, classes: tuple[str, ...], per_class: int | None = None) -> Any:
    from datamodules import ImageFolder, Subset

    base = ImageFolder(root / "cifar10-jpeg", image_size=16, cache=True)
    return Subset(base, classes, per_class, batch_size=128)


def _clothes(root: Path, classes: tuple[str, ...] | None, per_class: int | None = None) -> Any:
    from datamodules import FashionMNIST, Subset

    return Subset(FashionMNIST(root), classes, per_class, batch_size=128)


def _digits(per_class: int | None = None, classes: tuple[str, ...] | None = None) -> Any:
    from datamodules import Digits, Subset

    return Subset(Digits(size=28), classes, per_class, batch_size=128)


def _resnet() -> Any:
    from recipes.nn import ResNet

    return ResNet(20)


def _convnet() -> Any:
    from recipes.nn import ConvNet

    return ConvNet(in_channels=1)


def _crops() -> Any:
    from recipes.augment import SupervisedViews

    return SupervisedViews(scale=(0.4, 1.0))


def _shifts() -> Any:
    from recipes.augment import RandomAffine

    return RandomAffine(degrees=10, translate=0.1, scale=(0.9, 1.1))


PAIRS = {
    "vehicles to animals": Pair(
        lambda root: _cifar(root, VEHICLES), lambda root, n: _cifar(root, ANIMALS, n), _resnet, _crops
    ),
    "half of CIFAR-10 to the rest": Pair(
        lambda root: _cifar(root, VEHICLES[:2] + ANIMALS[:3]),
        lambda root, n: _cifar(root, VEHICLES[2:] + ANIMALS[3:], n),
        _resnet,
        _crops,
    ),
    "half of Fashion-MNIST to the rest": Pair(
        lambda root: _clothes(root, CLOTHES), lambda root, n: _clothes(root, OTHER_CLOTHES, n), _convnet, _shifts
    ),
    "Fashion-MNIST to digits": Pair(lambda root: _clothes(root, None), lambda root, n: _digits(n), _convnet, _shifts),
    "animals to vehicles": Pair(
        lambda root: _cifar(root, ANIMALS), lambda root, n: _cifar(root, VEHICLES, n), _resnet, _crops
    ),
    "the rest of Fashion-MNIST to that half": Pair(
        lambda root: _clothes(root, OTHER_CLOTHES),
        lambda root, n: _clothes(root, CLOTHES, n),
        _convnet,
        _shifts,
    ),
    "even to odd digits": Pair(
        lambda root: _digits(classes=tuple("02468")),
        lambda root, n: _digits(n, tuple("13579")),
        _convnet,
        _shifts,
    ),
}


def measure(seeds: list[int], root: Path, jobs: int, again: bool) -> dict[str, Any]:
    """Measures what results/quadrants.json does not have yet, and writes it after every pair and seed."""
    cells = [] if again or not RESULT.exists() else json.loads(RESULT.read_text())["cells"]
    done = {(cell["pair"], cell["seed"]) for cell in cells}
    todo = [(pair, seed) for seed in seeds for pair in PAIRS if (pair, seed) not in done]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_cells, pair, seed, root, jobs): (pair, seed) for pair, seed in todo}
        for future in as_completed(futures):
            cells += future.result()
            write(RESULT, _result(cells, jobs))
            print(*futures[future], f"{len(cells)} of {len(PAIRS) * len(SIZES) * len(seeds)} cells", flush=True)
    result = _result(cells, jobs)
    write(RESULT, result)
    return result


def _cells(name: str, seed: int, root: Path, jobs: int) -> list[dict[str, Any]]:
    import torch
    from lightning.pytorch import Trainer, seed_everything

    from recipes import Supervised
    from recipes.optim import WarmupCosine
    from recipes.transfer.advisor import measure as measured
    from recipes.transfer.verification import verify

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    pair = PAIRS[name]
    source = pair.source(root)
    source.prepare_data()
    source.setup()
    seed_everything(seed, verbose=False)
    supervised = Supervised(
        pair.encoder(), source.num_classes, views=pair.views(), scheduler=lambda o: WarmupCosine(o, warmup_epochs=1)
    )
    options = {"precision": "bf16-mixed", "accelerator": "cpu"}
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    epochs = max(SOURCE_EPOCHS, SOURCE_STEPS // len(source.train_dataloader()))
    trainer = Trainer(max_epochs=epochs, check_val_every_n_epoch=epochs, **quiet, **options)
    trainer.fit(supervised, source)
    source_accuracy = trainer.test(supervised, source, verbose=False)[0]["test/accuracy"]
    encoder = supervised.encoder
    encoder.pretrained = True
    encoder.normalization = source.mean, source.std
    cells = []
    for size, per_class in SIZES.items():
        start = time.perf_counter()
        data = pair.target(root, per_class)
        measurement = measured(name, encoder, data, source_head=supervised.head)
        seconds = time.perf_counter() - start
        stage = measurement.best_stage  # the one that the advisor would name for an SVM
        results = verify(encoder, data, steps=STEPS[size], seed=seed, stage=stage, views=pair.views(), options=options)
        cells.append(
            {
                "pair": name,
                "images_per_class": size,
                "seed": seed,
                "source_accuracy": source_accuracy,
                "measurement": dataclasses.asdict(measurement),
                "seconds": seconds,
                "svm_stage": stage,
                "results": results,
            }
        )
    return cells


def _result(cells: list[dict[str, Any]], jobs: int) -> dict[str, Any]:
    order = {pair: number for number, pair in enumerate(PAIRS)}
    sizes = list(SIZES)
    cells.sort(key=lambda cell: (order[cell["pair"]], sizes.index(cell["images_per_class"]), cell["seed"]))
    return {
        "about": "Five strategies of transfer learning, and the advisor's choice",
        "command": "scripts/reproduce quadrants",
        "seeds": sorted({cell["seed"] for cell in cells}),
        "steps": STEPS,
        "source_epochs": SOURCE_EPOCHS,
        "jobs": jobs,
        "machine": machine(),
        "versions": versions(),
        "cells": [{**cell, **_advice(cell["measurement"])} for cell in cells],
    }


def _advice(measurement: dict[str, Any]) -> dict[str, Any]:
    """What the advisor says today of what was measured."""
    from recipes.transfer.advisor import Measurement, Scores, choose

    scores = {name: Scores(**measurement[name]) for name in ("scores", "random")}
    found = Measurement(**{**measurement, **scores})
    return {"similarity": found.similarity, "advice": dataclasses.asdict(choose(found))}


def table(result: dict[str, Any]) -> str:
    """The accuracy of every strategy in every cell, and whether the advisor's choice was among the best."""
    titles = {
        "from-scratch": "from scratch",
        "fine-tune-all": "fine-tune all",
        "fine-tune-last": "fine-tune last",
        "feature-extraction": "frozen, linear",
        "svm": "frozen, SVM",
    }
    cells: dict[tuple[str, str], list[Any]] = {}
    for run in result["cells"]:
        cells.setdefault((run["pair"], run["images_per_class"]), []).append(run)
    rows = []
    near = dict.fromkeys((None, *titles), 0)  # by what few and similar images get instead of the advice
    for (pair, size), runs in cells.items():
        accuracy = {name: summary([run["results"][name]["test"] for run in runs]) for name in titles}
        best = max(value["mean"] for value in accuracy.values())
        behind = {}
        for choice in near:
            chosen = [_chosen(run["advice"], choice) for run in runs]
            got = sum(run["results"][name]["test"] for run, name in zip(runs, chosen)) / len(runs)
            behind[choice] = got - best
            near[choice] += behind[choice] >= -0.01
        numbers = [cell(value, 100, 1) for value in accuracy.values()]
        numbers = [f"**{n}**" if v["mean"] == best else n for n, v in zip(numbers, accuracy.values())]
        similarity = cell(summary([run["similarity"] for run in runs]), 100, 0)
        advice = " or ".join(dict.fromkeys(titles[run["advice"]["strategy"]] for run in runs))
        against = f"{100 * min(behind[None], 0):.1f}".replace("-0.0", "0.0")
        rows.append([pair, size, similarity, *numbers, advice, against])
    head = ["from, to", "images per class", "similarity (%)", *titles.values(), "advice", "against the best"]
    others = ", ".join(f"{titles[choice]} {count}" for choice, count in near.items() if choice)
    return (
        "**The four quadrants**: test accuracy (%) of five strategies, and the advisor's choice\n\n"
        + markdown(head, rows)
        + f"\nMean ± standard deviation over {len(result['seeds'])} seeds, of the source encoder too; bold: the best. "
        f"The advice is within one point of the best strategy in {near[None]} of {len(cells)} cells. Had the rule "
        "recommended another strategy for few, similar images, it would have been within one point in this many "
        f"cells: {others}. `scripts/reproduce quadrants`.\n"
    )


def _chosen(advice: dict[str, Any], instead: str | None) -> str:
    """The strategy that is advised; of few and similar images, another one if it is given."""
    few_and_similar = (advice["size"], advice["kinship"]) == ("small", "similar")
    return instead if instead and few_and_similar else advice["strategy"]
