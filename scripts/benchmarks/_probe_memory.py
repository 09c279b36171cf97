"""Measures one stage of the representation probe, in a process of its own or in several that share the bank."""

import json
import os
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

try:
    from recipes.evaluation.bank import Bank, extract_bank
except ModuleNotFoundError:  # an earlier commit: every process has the whole bank, and the first measures
    extract_bank, Bank = extract, None  # type: ignore[assignment, misc]

_ROWS = 1000  # of a batch
RANK, PROCESSES = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))


def loader(images: range, width: int, classes: int, seed: int) -> "DataLoader[Batch]":
    """Batches whose images are features already, around a centre for each class."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(0))

    def batch(positions: list[int]) -> Batch:
        index = torch.tensor([images[position] for position in positions])
        label = index % classes
        noise = torch.randn(len(index), width, generator=torch.Generator().manual_seed(1 + seed + int(index[0])))
        return Batch(noise.mul_(8).add_(centres[label]), label, index)

    return DataLoader(range(len(images)), batch_size=_ROWS, collate_fn=batch)  # type: ignore[arg-type]


def collect(images: range, width: int, classes: int, seed: int) -> Any:
    batches = loader(images, width, classes, seed)
    return extract_bank({"it": nn.Identity()}, batches, quiet_trainer(accelerator="cpu"))["it"]


def filled(images: range, width: int, classes: int, seed: int) -> Features:
    """The features of images, without a copy."""
    index = torch.tensor(images)
    feature = torch.empty(len(index), width)
    for number, batch in enumerate(loader(images, width, classes, seed)):
        feature[number * _ROWS : number * _ROWS + len(batch.index)] = batch.image
    return Features(feature, index % classes, index)


def measured(stage: str, images: int, width: int, classes: int, queries: int, threads: int) -> dict[str, Any]:
    quiet()
    torch.set_num_threads(max(1, threads // PROCESSES))
    share = range(RANK * images // PROCESSES, (RANK + 1) * images // PROCESSES)
    warm = filled(range(200), 8, 2, 0)  # what is loaded once is not of the bank
    collect(range(200), 8, 2, 0)
    knn(warm, warm, 2)
    linear_probe(warm, warm, 2)
    torch.rand(2000, width) @ torch.rand(width, classes)
    query = filled(range(images, images + queries), width, classes, 0)
    base = megabytes_in_use()
    predicted: Tensor | None = None
    if stage == "collect":
        new_peak()
        _wait()
        start = time.perf_counter()
        bank = collect(share, width, classes, 0)
    else:
        bank = filled(share if Bank else range(images), width, classes, 0)
        if Bank and PROCESSES > 1:
            index = torch.arange(images)
            bank = Bank(bank.feature, bank.index, index % classes, index, PROCESSES)
        new_peak()
        _wait()
        start = time.perf_counter()
        if Bank or RANK == 0:
            predicted = (knn if stage == "knn" else linear_probe)(bank, query, classes)
    _wait()
    seconds = time.perf_counter() - start
    used = peak_megabytes() - base
    result = {"seconds": round(seconds, 1), "peak_mb": round(used)}
    result["peak_over_share"] = round(used / (images * width * 4e-6 / PROCESSES), 2)
    return result if predicted is None else {**result, "accuracy": accuracy(predicted, query.label, classes)}


def _wait() -> None:
    if PROCESSES > 1:
        torch.distributed.barrier()


if __name__ == "__main__":
    if PROCESSES > 1:
        torch.distributed.init_process_group("gloo", f"file://{sys.argv[2]}", rank=RANK, world_size=PROCESSES)
    print(json.dumps(measured(**json.loads(sys.argv[1]))), flush=True)
    os._exit(0)  # gloo's threads may still hold Python objects
