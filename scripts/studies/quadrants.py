"""The four quadrants of transfer learning on real images: five strategies, and what the advisor says beforehand.

Every pair of a source and a target is measured with 10, 100 and all training images of each class of the target. The
source encoder is trained here, by the recipe ``Supervised``, anew for every seed.
"""

import dataclasses
import json
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from recipes.evaluation.text_tables import cell, markdown
from recipes.launch.results import machine, summary, versions, write
from studies.base import KEPT, RESULTS
from studies.quadrant_pairs import PAIRS, SIZES, SOURCES, UNSEEN, Pair

RESULT = RESULTS / "quadrants.json"
STEPS = {"10": 400, "30": 400, "100": 800, "all": 1600}  # of the optimiser
OPTIONS = {"precision": "bf16-mixed", "accelerator": "cpu"}  # of the Trainer
SOURCE_EPOCHS, SOURCE_STEPS = 6, 600  # at least as many of both


def measure(seeds: list[int], root: Path, jobs: int, again: bool) -> dict[str, Any]:
    """Measures what results/quadrants.json does not have yet, and writes it after every pair and seed."""
    cells = [] if again else _measured_before()
    done = {(cell["pair"], cell["seed"]) for cell in cells}
    todo = [(pair, seed) for seed in seeds for pair in PAIRS | UNSEEN if (pair, seed) not in done]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_cells, pair, seed, root, jobs): (pair, seed) for pair, seed in todo}
        for future in as_completed(futures):
            cells += future.result()
            write(RESULT, _result(cells, jobs))
            print(*futures[future], f"{len(cells)} cells", flush=True)
    result = _result(cells, jobs)
    write(RESULT, result)
    return result


def compare_again(root: Path) -> None:
    """Compares the encoders of all measured cells with random encoders again. It trains nothing.

    Raises:
        RuntimeError: if a random encoder does not get the LogME that it had, so that the images are not the same.
    """
    from recipes.evaluation.stage_reader import quiet_trainer
    from recipes.transfer.advisor import MOST_IMAGES, Comparison, evenly, random_log_me, training_labels

    cells = _measured_before()
    trainer = quiet_trainer(accelerator="cpu")
    for name, pair in PAIRS.items():
        for size in pair.sizes:
            data = pair.target(root, SIZES[size])
            rows = evenly(training_labels(data), MOST_IMAGES)
            random = random_log_me(SOURCES[pair.source].encoder(), data, rows, trainer)
            for run in cells:
                if (run["pair"], run["images_per_class"]) == (name, size):
                    found = run["measurement"]
                    if abs(found["random"]["log_me"] - random[0]) > 1e-4:
                        raise RuntimeError(f"{name}, {size}: these are not the images that were measured")
                    compared = Comparison(len(rows), found["scores"]["log_me"], random)
                    found["compared"] = dataclasses.asdict(compared)
            print(name, size, flush=True)
    before = json.loads(RESULT.read_text())
    about = {key: before[key] for key in ("machine", "versions")}
    write(RESULT, _result(cells, before["jobs"]) | about | {"compared_again": {"versions": versions()}})


def _measured_before() -> list[dict[str, Any]]:
    return json.loads(RESULT.read_text())["cells"] if RESULT.exists() else []


def _cells(name: str, seed: int, root: Path, jobs: int) -> list[dict[str, Any]]:
    import torch

    from recipes.transfer.advisor import STRATEGIES
    from recipes.transfer.advisor import measure as measured
    from recipes.transfer.verification import verify

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))
    pair = (PAIRS | UNSEEN)[name]
    supervised, source_accuracy = _source(pair.source, seed, root)
    encoder, views = supervised.encoder, SOURCES[pair.source].views()
    cells = []
    for size in pair.sizes:
        start = time.perf_counter()
        data = pair.target(root, SIZES[size])
        measurement = measured(name, encoder, data, source_head=supervised.head)
        seconds = time.perf_counter() - start
        stage = measurement.best_stage  # the one that the advisor would name for an SVM
        results = verify(encoder, data, tuple(STRATEGIES), STEPS[size], seed, stage, views, OPTIONS)
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


def _source(name: str, seed: int, root: Path) -> tuple[Any, float]:
    """A classifier trained on a source, and its test accuracy. It is kept in runs/studies."""
    import torch
    from lightning.pytorch import Trainer, seed_everything

    from recipes import Supervised
    from recipes.optim import WarmupCosine

    source, path = SOURCES[name], KEPT / "quadrants" / f"{name}, seed {seed}.pt"
    data = source.data(root)
    data.prepare_data()
    data.setup()
    seed_everything(seed, verbose=False)
    supervised = Supervised(
        source.encoder(), data.num_classes, views=source.views(), scheduler=lambda o: WarmupCosine(o, warmup_epochs=1)
    )
    if not path.exists():
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        epochs = max(SOURCE_EPOCHS, SOURCE_STEPS // len(data.train_dataloader()))
        trainer = Trainer(max_epochs=epochs, check_val_every_n_epoch=epochs, **quiet, **OPTIONS)
        trainer.fit(supervised, data)
        accuracy = trainer.test(supervised, data, verbose=False)[0]["test/accuracy"]
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"state_dict": supervised.state_dict(), "accuracy": accuracy}, path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
    kept = torch.load(path, weights_only=True)
    supervised.load_state_dict(kept["state_dict"])
    encoder = supervised.encoder
    encoder.pretrained = True
    encoder.normalization = data.mean, data.std
    return supervised.eval(), kept["accuracy"]


def _result(cells: list[dict[str, Any]], jobs: int) -> dict[str, Any]:
    order = {pair: number for number, pair in enumerate(PAIRS | UNSEEN)}
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
    from recipes.transfer.advisor import Comparison, Measurement, Scores, choose, similar_from

    parts: dict[str, Any] = {name: Scores(**measurement[name]) for name in ("scores", "random")}
    parts["compared"] = Comparison(**{**measurement["compared"], "random": tuple(measurement["compared"]["random"])})
    found = Measurement(**{**measurement, **parts})
    return {
        "similarity": found.similarity,
        "similar_from": similar_from(found),
        "advice": dataclasses.asdict(choose(found)),
    }


def table(pairs: dict[str, Pair], about: str, result: dict[str, Any]) -> str:
    """The accuracy of every strategy in every cell, and whether the advisor's choice was among the best.

    Args:
        pairs: the pairs to show.
        about: title of the table.
        result: content of results/quadrants.json.
    """
    titles = {
        "from-scratch": "from scratch",
        "fine-tune-all": "fine-tune all",
        "fine-tune-last": "fine-tune last",
        "feature-extraction": "frozen, linear",
        "svm": "frozen, SVM",
    }
    cells: dict[tuple[str, str], list[Any]] = {}
    for run in (run for run in result["cells"] if run["pair"] in pairs):
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
        least = cell(summary([run["similar_from"] for run in runs]), 100, 0)
        advice = " or ".join(dict.fromkeys(titles[run["advice"]["strategy"]] for run in runs))
        against = f"{100 * min(behind[None], 0):.1f}".replace("-0.0", "0.0")
        rows.append([pair, size, similarity, least, *numbers, advice, against])
    head = [
        "from, to",
        "images per class",
        "similarity (%)",
        "similar from (%)",
        *titles.values(),
        "advice",
        "against the best",
    ]
    seeds = max(len(runs) for runs in cells.values())
    several = "s" * (seeds > 1)
    others = ", ".join(f"{titles[choice]} {count}" for choice, count in near.items() if choice)
    return (
        f"**{about}**: test accuracy (%) of five strategies, and the advisor's choice\n\n"
        + markdown(head, rows)
        + f"\nMean ± standard deviation over {seeds} seed{several}, of the source encoder too; bold: the best. "
        f"The advice is within one point of the best strategy in {near[None]} of {len(cells)} cells. Had the rule "
        "recommended another strategy for few, similar images, it would have been within one point in this many "
        f"cells: {others}. `scripts/reproduce quadrants`.\n"
    )


def _chosen(advice: dict[str, Any], instead: str | None) -> str:
    """The strategy that is advised; of few and similar images, another one if it is given."""
    few_and_similar = (advice["size"], advice["kinship"]) == ("small", "similar")
    return instead if instead and few_and_similar else advice["strategy"]
