"""NT-Xent, forward and backward, against other libraries: time, and memory beyond the embeddings.

The libraries take turns at random float32 embeddings of N images, two each. Memory is how far one pass lifts a fresh
process's resident memory above what it held before (on Linux). A library that needs more than the limit is not timed.
The largest numbers of images are for the recipes' loss alone, once.
"""

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from benchmarks.common import medians, megabytes_in_use, new_peak, peak_megabytes, ratio, take_turns, versions

LIBRARIES = ("recipes", "lightly", "pytorch-metric-learning")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=int, nargs="*", default=[256, 512, 1024, 4096, 8192], help="N, in two views")
    parser.add_argument("--alone", type=int, nargs="*", default=[16384, 65536], help="N for the recipes' loss alone")
    parser.add_argument("--width", type=int, default=128, help="of the embeddings")
    parser.add_argument("--temperature", type=float, default=0.1, help="of the softmax")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="how often each library takes its turn")
    parser.add_argument("--limit", type=float, default=8.0, help="memory that a library may take, in GB")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(options.threads)
    measured: dict[int, dict[str, Any]] = {}
    for images in options.images:
        peaks = {name: _in_fresh_process(name, images, options) for name in LIBRARIES}
        able = [name for name, peak in peaks.items() if "error" not in peak]
        seconds = take_turns({name: _timed(_pass(name, images, options)) for name in able}, options.rounds)
        peers = [name for name in able if name != "recipes"]
        extra = {name: peaks[name]["extra_mb"] for name in able}
        measured[images] = {
            "seconds": seconds,
            "median_seconds": medians(seconds),
            "extra_mb": extra,
            "median_ratio_of_seconds_to": {name: ratio(seconds, "recipes", name) for name in peers},
            "ratio_of_extra_mb_to": {name: round(extra["recipes"] / extra[name], 4) for name in peers},
            "errors": {name: peak["error"] for name, peak in peaks.items() if "error" in peak},
        }
    return {
        "task": f"NT-Xent of N images' embeddings [2, N, {options.width}], float32, {options.threads} CPU threads",
        "images": measured,
        "recipes_alone": {images: _in_fresh_process("recipes", images, options) for images in options.alone},
        "memory_limit_gb": options.limit,
        "versions": versions("lightly", "pytorch-metric-learning"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    lines = []
    too_large: set[str] = set()
    for images, measured in result["images"].items():
        for name, value in measured["median_ratio_of_seconds_to"].items():
            memory = measured["ratio_of_extra_mb_to"][name]
            lines.append(
                [f"NT-Xent of {int(images):,} images", name, f"{value:.2g} times its time, {memory:.2g} of its memory"]
            )
        for name in measured["errors"].keys() - too_large:
            lines.append(
                [f"NT-Xent of {int(images):,} images", name, f"its memory is above {result['memory_limit_gb']:.0f} GB"]
            )
            too_large.add(name)
    for images, alone in result["recipes_alone"].items():
        took = alone.get("error") or f"{alone['seconds']:.1f} s, {alone['extra_mb']:.0f} MB beyond the embeddings"
        lines.append([f"NT-Xent of {int(images):,} images", "–", took])
    return lines


def _pass(name: str, images: int, options: argparse.Namespace) -> Callable[[], None]:
    """One forward and backward pass of a library's NT-Xent."""
    import torch

    generator = torch.Generator().manual_seed(0)
    z1, z2 = (torch.randn(images, options.width, generator=generator).requires_grad_() for _ in range(2))
    loss: Callable[..., torch.Tensor]
    if name == "recipes":
        from losses import NTXent

        loss = NTXent(options.temperature)
    elif name == "lightly":
        from lightly.loss import NTXentLoss

        loss = NTXentLoss(options.temperature)
    else:
        from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

        loss = SelfSupervisedLoss(NTXentLoss(options.temperature))

    def once() -> None:
        z1.grad = z2.grad = None
        loss(z1, z2).backward()

    return once


def _timed(run: Callable[[], None]) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return once


def _in_fresh_process(name: str, images: int, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and extra memory of one pass, or why there are none."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        try:
            return fresh.submit(_seconds_and_memory, name, images, options).result()
        except (BrokenProcessPool, RuntimeError, MemoryError) as error:
            return {"error": (str(error).splitlines() or [type(error).__name__])[0]}


def _seconds_and_memory(name: str, images: int, options: argparse.Namespace) -> dict[str, float]:
    import torch

    torch.set_num_threads(options.threads)
    _pass(name, 64, options)()  # loads libraries and starts threads
    run = _pass(name, images, options)
    resource.setrlimit(resource.RLIMIT_DATA, (int(options.limit * 1e9),) * 2)
    new_peak()
    before = megabytes_in_use()
    seconds = _timed(run)()
    return {"seconds": round(seconds, 4), "extra_mb": round(peak_megabytes() - before, 1)}
