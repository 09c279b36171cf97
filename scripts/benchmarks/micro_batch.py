"""A large batch of SimCLR in micro-batches, against the whole batch at once: peak memory and time.

ResNet-20 with group norm on 32 × 32 RGB pictures in bf16-mixed. Each turn is a process of its own, whose peak memory
counts from before training: what the libraries and the images take is left out.
"""

import argparse
import multiprocessing
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.common import megabytes_in_use, new_peak, peak_megabytes, quiet, simclr, trainer, versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data/cifar10-jpeg"), help="folder of class folders")
    parser.add_argument("--batch", type=int, default=4096, help="number of images")
    parser.add_argument("--micro-batch", type=int, default=256, help="number of images that are encoded at a time")
    parser.add_argument("--rounds", type=int, default=3, help="how often each takes its turn")
    parser.add_argument("--steps", type=int, default=3, help="how many steps of a turn are timed")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    sizes = {"at once": None, "in micro-batches": options.micro_batch}
    seconds: dict[str, list[float]] = {name: [] for name in sizes}
    memory: dict[str, list[float]] = {name: [] for name in sizes}
    context = multiprocessing.get_context("spawn")
    for _ in range(options.rounds):
        for name, size in sizes.items():
            with context.Pool(1) as pool:
                taken, peak = pool.apply(_train, (options, size))
            seconds[name].append(taken)
            memory[name].append(peak)
            print(f"{name}: {taken:.2f} s per step, {peak:.0f} MB", flush=True)
    pairs = zip(seconds["in micro-batches"], seconds["at once"])
    return {
        "task": f"a step of SimCLR, ResNet-20 with group norm, bf16-mixed, batch {options.batch} in micro-batches of "
        f"{options.micro_batch}, {torch.get_num_threads()} CPU threads",
        "seconds_per_step": seconds,
        "extra_peak_megabytes": memory,
        "time_ratio": round(statistics.median(micro / whole for micro, whole in pairs), 4),
        "memory_ratio": round(max(memory["in micro-batches"]) / min(memory["at once"]), 4),
        "versions": versions("lightning"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    return [
        [f"time of {result['task']}", "the batch at once", f"{result['time_ratio']:.2f} times its time"],
        ["extra peak memory of the same", "the batch at once", f"{result['memory_ratio']:.2f} of its memory"],
    ]


def _train(options: argparse.Namespace, micro_batch_size: int | None) -> tuple[float, float]:
    """Seconds per step, and megabytes of the peak over what was in use before."""
    from lightning.pytorch import Callback, seed_everything

    from datamodules import ImageFolder
    from recipes.nn import ResNet

    class Clock(Callback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_train_batch_end(self, *_: Any) -> None:
            self.ends.append(time.perf_counter())

    quiet()
    seed_everything(0, verbose=False)
    data = ImageFolder(options.root, image_size=32, cache=True, batch_size=options.batch)
    data.setup("fit")
    recipe, clock = simclr(encoder=ResNet(20, norm="group"), micro_batch_size=micro_batch_size), Clock()
    new_peak()
    before = megabytes_in_use()
    trainer(max_steps=options.steps + 1, callbacks=[clock]).fit(recipe, data)
    ends = clock.ends
    return statistics.median(b - a for a, b in zip(ends, ends[1:])), peak_megabytes() - before
