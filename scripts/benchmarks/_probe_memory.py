"""Measures one stage of the representation probe, in a process of its own."""

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.common import megabytes_in_use, new_peak, peak_megabytes, quiet
from datamodules import Batch
from recipes.evaluation import accuracy, knn, linear_probe, quiet_trainer
from recipes.evaluation.features import Features, extract

_ROWS = 1000  # of a batch


def loader(images: int, width: int, classes: int, seed: int) -> "DataLoader[Batch]":
    """Batches whose images are features already, around a centre for each class."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))

    def batch(positions: list[int]) -> Batch:
        index = torch.tensor(positions)
        label = index % classes
        noise = torch.randn(len(index), width, generator=torch.Generator().manual_seed(1 + seed + positions[0]))
        return Batch(noise.mul_(8).add_(centres[label]), label, index)

    return DataLoader(range(images), batch_size=_ROWS, collate_fn=batch)  # type: ignore[arg-type]


def collect(images: int, width: int, classes: int, seed: int) -> Features:
    features = extract({"it": nn.Identity()}, loader(images, width, classes, seed), quiet_trainer(accelerator="cpu"))
    return features["it"]


def filled(images: int, width: int, classes: int, seed: int) -> Features:
    """The same, without a copy."""
    feature, label = torch.empty(images, width), torch.empty(images, dtype=torch.int64)
    for batch in loader(images, width, classes, seed):
        rows = slice(int(batch.index[0]), int(batch.index[-1]) + 1)
        feature[rows], label[rows] = batch.image, batch.label
    return Features(feature, label, torch.arange(images))


def measured(stage: str, images: int, width: int, classes: int, queries: int, threads: int) -> dict[str, Any]:
    quiet()
    torch.set_num_threads(threads)
    warm = collect(200, 8, 2, 0)  # what is loaded once is not of the bank
    knn(warm, warm, 2)
    linear_probe(warm, warm, 2)
    torch.rand(2000, width) @ torch.rand(width, classes)
    query = filled(queries, width, classes, images)
    base = megabytes_in_use()
    predicted: Tensor | None = None
    if stage == "collect":
        new_peak()
        start = time.perf_counter()
        bank = collect(images, width, classes, 0)
    else:
        bank = filled(images, width, classes, 0)
        new_peak()
        start = time.perf_counter()
        predicted = (knn if stage == "knn" else linear_probe)(bank, query, classes)
    seconds = time.perf_counter() - start
    result: dict[str, Any] = {
        "seconds": round(seconds, 1),
        "peak_over_bank": round((peak_megabytes() - base) / (bank.feature.nbytes / 1e6), 2),
    }
    return result if predicted is None else {**result, "accuracy": accuracy(predicted, query.label, classes)}


if __name__ == "__main__":
    print(json.dumps(measured(**json.loads(sys.argv[1]))))
