"""What each option for speed does to a training step of SimCLR: the default, and the default with one thing changed.

ResNet-20 on 32 × 32 RGB pictures, as the config simclr-cifar10-small. The variants take turns, step by step.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import medians, quiet, ratio, simclr, take_turns, trainer, versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data/cifar10-jpeg"), help="folder of class folders")
    parser.add_argument("--batch", type=int, default=256, help="number of images")
    parser.add_argument("--rounds", type=int, default=15, help="how many steps of each variant are timed")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from lightning.pytorch import seed_everything

    quiet()
    seed_everything(0, verbose=False)
    adamw = torch.optim.AdamW
    variants: dict[str, Callable[[], float]] = {
        "default": _step(options),
        "float32": _step(options, precision="32-true"),
        "contiguous memory format": _step(options, memory_format=torch.contiguous_format),
        "foreach optimiser": _step(options, optimizer=lambda p: adamw(p, lr=1e-3, foreach=True)),
        "fused optimiser": _step(options, optimizer=lambda p: adamw(p, lr=1e-3, fused=True)),
        "one worker loads ahead": _step(options, num_workers=1),
        "compiled encoder": _step(options, compiled=True),
    }
    start = time.perf_counter()
    variants["compiled encoder"]()
    compilation = time.perf_counter() - start
    seconds = take_turns(variants, options.rounds, warmup=3)
    return {
        "task": f"a step of SimCLR, ResNet-20, batch {options.batch}, {torch.get_num_threads()} CPU threads",
        "default": "bf16-mixed, channels_last, torch's choice of optimiser loop, data in memory, not compiled",
        "unit": "seconds per step",
        "seconds": seconds,
        "median": medians(seconds),
        "median_ratio_to_default": {name: ratio(seconds, name, "default") for name in seconds},
        "seconds_of_compilation": round(compilation, 1),
        "versions": versions("lightning"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    return [
        [f"SimCLR's step: {name}", "its default", f"{value:.2f} times its time"]
        for name, value in result["median_ratio_to_default"].items()
        if name != "default"
    ]


def _step(
    options: argparse.Namespace,
    precision: str = "bf16-mixed",
    memory_format: Any = None,
    compiled: bool = False,
    num_workers: int = 0,
    **arguments: Any,
) -> Callable[[], float]:
    """A function that trains one more step and gives its seconds: data, views, loss, gradients and optimiser."""
    import torch

    from datamodules import ImageFolder

    data = ImageFolder(options.root, image_size=32, cache=True, batch_size=options.batch, num_workers=num_workers)
    data.setup("fit")
    recipe = simclr(**arguments)
    recipe.trainer = trainer(precision=precision)
    recipe.log = lambda *_, **__: None
    recipe.normalize.set(data.mean, data.std)
    if memory_format is not None:
        recipe.encoder.to(memory_format=memory_format)
    if compiled:
        recipe.encoder.compile()
    optimizer = recipe.optimizer(recipe.parameters())
    loader = data.train_dataloader()
    batches = iter(loader)

    def step() -> float:
        nonlocal batches
        start = time.perf_counter()
        try:
            batch = next(batches)
        except StopIteration:
            batches = iter(loader)
            batch = next(batches)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = recipe.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    return step
