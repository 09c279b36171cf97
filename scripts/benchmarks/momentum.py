"""The momentum copy, MoCo's loss and the memories, against the published loop, the logits at once and lightly.

The update of a momentum copy of all parameters is timed in turns with the loop of MoCo's published code, which makes
new tensors, and with a loop in place. MoCo's loss of N queries, forward and backward, with its queue, to which the N
keys are then pushed, is timed in turns with the usual cross-entropy of the concatenated logits and with lightly. Memory
is how far one pass lifts a fresh process's resident memory (on Linux), and what a bank and a queue take there.
"""

import argparse
import copy
import io
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from benchmarks.common import medians, megabytes_in_use, new_peak, peak_megabytes, ratio, take_turns, versions

LOSSES = ("recipes", "logits at once", "lightly")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--encoder", default="resnet50", help="torchvision's network that is followed")
    parser.add_argument("--queries", type=int, default=256, help="N, as many as keys that are pushed")
    parser.add_argument("--queue", type=int, default=65536, help="how many keys the queue holds")
    parser.add_argument("--width", type=int, default=128, help="of queries, keys and features")
    parser.add_argument("--images", type=int, nargs="*", default=[1797, 50000, 1281167], help="sizes of the data")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--rounds", type=int, default=21, help="how often each takes its turn")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(options.threads)
    return {
        "threads": options.threads,
        "update": _update(options),
        "loss": _loss(options),
        "memory": {
            kind: {images: _fresh(_memory, kind, images, options) for images in options.images}
            for kind in ("bank", "queue")
        },
        "versions": versions("torchvision", "lightly"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    update, loss = result["update"], result["loss"]
    lines = [
        [f"momentum update of {update['task']}", f"the {name}", f"{value:.2f} times its time"]
        for name, value in update["median_ratio_of_seconds_to"].items()
    ]
    for name, value in loss["median_ratio_of_seconds_to"].items():
        other = {"logits at once": "the logits at once"}.get(name, name)
        memory = f"{loss['ratio_of_extra_mb_to'][name]:.2g} of its memory"
        lines.append([f"MoCo's loss of {loss['task']}", other, f"{value:.2g} times its time, {memory}"])
    for images, bank in result["memory"]["bank"].items():
        queue = result["memory"]["queue"][images]
        taken = [
            f"{one['resident_mb']:,.0f} MB, {one['checkpoint_mb']:,.0f} MB in a checkpoint" for one in (bank, queue)
        ]
        lines.append([f"memory bank of {int(images):,} images", f"the queue: {taken[1]}", taken[0]])
    return lines


def _update(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of an update, and how far apart the copies are after the first."""
    import torch

    from recipes.nn import MomentumCopy, TorchvisionEncoder

    encoder, momentum = TorchvisionEncoder(options.encoder), 0.999
    ours = MomentumCopy(encoder)
    copies = {name: copy.deepcopy(encoder) for name in ("published loop", "loop in place")}
    parameters = list(encoder.parameters())
    with torch.no_grad():
        for parameter in parameters:  # as training would move them
            parameter.add_(torch.randn_like(parameter), alpha=0.01)

    def published_loop() -> None:  # moco/builder.py of the published code
        for q, k in zip(encoder.parameters(), copies["published loop"].parameters()):
            k.data = k.data * momentum + q.data * (1.0 - momentum)

    @torch.no_grad()
    def loop_in_place() -> None:
        for q, k in zip(encoder.parameters(), copies["loop in place"].parameters()):
            k.mul_(momentum).add_(q, alpha=1 - momentum)

    updates: dict[str, Callable[[], None]] = {
        "recipes": lambda: ours.update(momentum),
        "published loop": published_loop,
        "loop in place": loop_in_place,
    }
    for update in updates.values():
        update()
    differences = {
        name: max((a - b).abs().max().item() for a, b in zip(ours.parameters(), other.parameters()))
        for name, other in copies.items()
    }
    seconds = take_turns({name: _timed(update) for name, update in updates.items()}, options.rounds)
    return {
        "task": f"{options.encoder}, {sum(p.numel() for p in parameters) / 1e6:.1f} million float32 in "
        f"{len(parameters)} tensors, {options.threads} CPU threads",
        "seconds": seconds,
        "median_seconds": medians(seconds),
        "median_ratio_of_seconds_to": {name: ratio(seconds, "recipes", name) for name in copies},
        "largest_difference_after_an_update_from": differences,
    }


def _loss(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and extra memory of a pass, and how far apart losses and gradients of the first pass are."""
    passes = {name: _pass(name, options) for name in LOSSES}
    first = {name: once() for name, once in passes.items()}
    extra = {name: _fresh(_extra_megabytes, name, options) for name in LOSSES}
    seconds = take_turns({name: _timed(once) for name, once in passes.items()}, options.rounds)
    others = LOSSES[1:]
    return {
        "task": f"{options.queries:,} queries with a queue of {options.queue:,} keys of {options.width} float32, "
        f"{options.threads} CPU threads",
        "seconds": seconds,
        "median_seconds": medians(seconds),
        "extra_mb": extra,
        "median_ratio_of_seconds_to": {name: ratio(seconds, "recipes", name) for name in others},
        "ratio_of_extra_mb_to": {name: round(extra["recipes"] / extra[name], 4) for name in others},
        "largest_difference_of_loss_and_gradient_from": {
            name: max((a - b).abs().max().item() for a, b in zip(first["recipes"], first[name])) for name in others
        },
    }


def _pass(name: str, options: argparse.Namespace) -> Callable[[], tuple[Any, Any]]:
    """The loss with its backward pass, then the keys go to the queue; gives loss and gradient."""
    import torch
    from torch.nn import functional as F

    from losses import InfoNCE
    from recipes.nn import FeatureQueue

    temperature = 0.2
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(options.queries, options.width, generator=generator) for _ in range(2))
    query.requires_grad_()
    queue = FeatureQueue(options.queue, options.width)
    info_nce = InfoNCE(temperature)

    def recipes() -> torch.Tensor:
        loss = info_nce(query, key, queue.features)
        loss.backward()
        queue.push(key)
        return loss

    def at_once() -> torch.Tensor:
        q, k = F.normalize(query, dim=1), F.normalize(key, dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.features.T], dim=1) / temperature
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        loss.backward()
        queue.push(k)
        return loss

    if name == "lightly":
        from lightly.loss import NTXentLoss

        theirs = NTXentLoss(temperature, memory_bank_size=(options.queue, options.width))
        theirs.memory_bank.bank.copy_(queue.features)

        def lightly() -> torch.Tensor:
            loss: torch.Tensor = theirs(query, key)
            loss.backward()
            return loss

        run: Callable[[], torch.Tensor] = lightly
    else:
        run = recipes if name == "recipes" else at_once

    def once() -> tuple[torch.Tensor, torch.Tensor | None]:
        query.grad = None
        loss = run().detach()
        return loss, query.grad

    return once


def _timed(run: Callable[[], Any]) -> Callable[[], float]:
    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return once


def _fresh(function: Callable[..., Any], *args: Any) -> Any:
    """What a function gives in a process that has done nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(function, *args).result()


def _extra_megabytes(name: str, options: argparse.Namespace) -> float:
    """How far one pass lifts memory above that of queries, keys and queue."""
    import torch

    torch.set_num_threads(options.threads)
    _pass(name, argparse.Namespace(queries=8, queue=16, width=8))()  # loads libraries and starts threads
    once = _pass(name, options)
    new_peak()
    before = megabytes_in_use()
    once()
    return round(peak_megabytes() - before, 1)


def _memory(kind: str, images: int, options: argparse.Namespace) -> dict[str, float]:
    """Megabytes that a memory for so many images takes, and those of its state in a checkpoint."""
    import torch

    from recipes.nn import FeatureQueue, MemoryBank

    def make(images: int, queue: int, width: int) -> torch.nn.Module:
        return MemoryBank(images, width) if kind == "bank" else FeatureQueue(queue, width)

    torch.save(make(8, 8, 8).state_dict(), io.BytesIO())  # loads libraries and starts threads
    before = megabytes_in_use()
    memory = make(images, options.queue, options.width)
    resident = megabytes_in_use() - before
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    return {"resident_mb": round(resident, 1), "checkpoint_mb": round(file.tell() / 1e6, 2)}
