"""Training and evaluation on a GPU, against the bare network, torch's own operations and lightly.

- ``steps``: a training step of SimCLR through the Trainer (views, logging and all), ResNet-18 at 32 pixels and
  ResNet-50 at 224, against forward and backward of its encoder alone on as many ready images; and the views' share.
- ``options``: the first of them with an option changed, against its default.
- ``losses``: NT-Xent of N images' embeddings of 128 numbers, against lightly's, or against the matrix of all pairs at
  once where lightly is not installed: time and peak memory.
- ``batch_norm``: the layer that joins the statistics of all devices, on one device, against ``F.batch_norm``.
- ``probe``: kNN and the linear probe on a large bank.
- ``files``: JPEG pictures of 224 pixels that workers read, against what the step of ResNet-50 needs.
- ``recipes``: every config ``*-digits`` in bf16-mixed for a few steps: whether it runs, and how often a training step
  waits for the device (the target is 0).

It takes about eight minutes on one GPU. With --tiny, everything is small and runs on a CPU, to see that it runs.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.common import medians, quiet, ratio, take_turns, versions

PARTS = ("recipes", "steps", "losses", "probe", "batch_norm", "options", "files")


_WORKSPACE_MB = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS), help="what is measured")
    parser.add_argument("--rounds", type=int, default=3, help="how often each takes its turn")
    parser.add_argument("--steps", type=int, default=30, help="how many steps each turn times")
    parser.add_argument("--jobs", type=int, default=8, help="how many recipes run at a time")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a CPU")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from lightning.pytorch import seed_everything

    quiet()
    seed_everything(0, verbose=False)
    cuda = torch.cuda.is_available()
    if not (cuda or options.tiny):
        raise SystemExit("there is no GPU here: give --tiny to see that it runs")
    measures = {
        "steps": _steps,
        "options": _options,
        "losses": _losses,
        "batch_norm": _batch_norm,
        "probe": _probe,
        "files": _files,
        "recipes": _recipes,
    }
    result: dict[str, Any] = {"device": torch.cuda.get_device_name() if cuda else "cpu", "tiny": options.tiny}
    for part in options.parts:
        start = time.perf_counter()
        try:
            result[part] = measures[part](options)
        except Exception as error:  # the other parts are worth having
            result[part] = {"error": traceback.format_exception_only(error)[-1].strip()}
            traceback.print_exc()
        result[f"seconds_of_{part}"] = round(time.perf_counter() - start, 1)
        print(json.dumps({part: result[part]}), file=sys.stderr, flush=True)
    return {**result, "versions": versions("torchvision", "lightning")}


def rows(result: dict[str, Any]) -> list[list[str]]:
    lines, device = [], result["device"]
    for task, step in result.get("steps", {}).items():
        lines.append([f"training step of {task}, {device}", "its encoder alone", f"{step['ratio']:.2f} times its time"])
        lines.append([f"views of {task}, {device}", "the whole step", f"{step['share_of_views']:.0%} of its time"])
    for images, loss in result.get("losses", {}).get("images", {}).items():
        what = f"NT-Xent of {int(images):,} images, {device}"
        if "ratio" in loss:
            ours, theirs = (loss["peak_mb"][name] for name in ("recipes", loss["peer"]))
            # below, memory is what cuBLAS takes for itself at the first product
            memory = f", {ours / theirs:.2g} of its memory" if theirs > _WORKSPACE_MB else ""
            lines.append([what, loss["peer"], f"{loss['ratio']:.2g} times its time{memory}"])
        else:
            took = f"{loss['median']['recipes']:.1f} s, {loss['peak_mb']['recipes']:.0f} MB beyond the embeddings"
            lines.append([what, "–", took])
    for name, value in result.get("options", {}).get("ratio_to_default", {}).items():
        lines.append([f"SimCLR's step on {device}: {name}", "its default", f"{value:.2f} times its time"])
    return lines


# Steps


def _steps(options: argparse.Namespace) -> dict[str, Any]:
    sizes = [("resnet18", 32, 512), ("resnet50", 224, 256)] if not options.tiny else [("resnet18", 32, 8)]
    found = {}
    for name, size, batch in sizes:
        recipe, data = _simclr(name, size), _random(size, batch)
        alone, views = _alone(recipe, size, batch, options.steps), _views(recipe, size, batch, options.steps)
        turns = {"step": partial(_fit, recipe, data, options.steps), "encoder alone": alone, "views": views}
        seconds = take_turns(turns, options.rounds, warmup=1)
        found[f"SimCLR, {name} at {size} pixels, batch {batch}, bf16-mixed"] = {
            "unit": "seconds per step",
            "seconds": seconds,
            "median": medians(seconds),
            "ratio": ratio(seconds, "step", "encoder alone"),
            "share_of_views": ratio(seconds, "views", "step"),
            "images_per_second": round(batch / medians(seconds)["step"]),
        }
    return found


def _options(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from recipes.callbacks import CompileEncoder

    size, batch = (32, 512) if not options.tiny else (32, 8)
    data = _random(size, batch)
    plain, contiguous, compiled = (_simclr("resnet18", size) for _ in range(3))
    contiguous.encoder.to(memory_format=torch.contiguous_format)
    turns: dict[str, Callable[[], float]] = {
        "default": lambda: _fit(plain, data, options.steps),
        "contiguous memory format": lambda: _fit(contiguous, data, options.steps),
        "float32": lambda: _fit(plain, data, options.steps, precision="32-true"),
    }
    if not options.tiny:
        turns["compiled encoder"] = lambda: _fit(compiled, data, options.steps, callbacks=[CompileEncoder()])
    seconds = take_turns(turns, options.rounds, warmup=1)
    return {
        "task": f"SimCLR, ResNet-18 at {size} pixels, batch {batch}",
        "unit": "seconds per step",
        "seconds": seconds,
        "ratio_to_default": {name: ratio(seconds, name, "default") for name in turns if name != "default"},
    }


def _simclr(name: str, size: int) -> Any:
    from benchmarks.common import simclr
    from recipes.augment import SimCLRViews
    from recipes.nn import TorchvisionEncoder

    encoder = TorchvisionEncoder(name, stem="small" if size <= 64 else "standard")
    small = {"blur": 0.0} if size <= 64 else {}  # SimCLR, Appendix B.9: no blur on CIFAR-10
    return simclr(encoder=encoder, projection_hidden_dim=None, views=SimCLRViews(**small))


def _random(size: int, batch: int) -> Any:
    """A DataModule with noise for pictures, in memory."""
    import torch

    from datamodules.base import ImageDataModule, Splits
    from datamodules.loading.dataset import ImagesInMemory

    class Noise(ImageDataModule):
        def load(self) -> Splits:
            image = torch.randint(0, 256, (4 * batch, 3, size, size), dtype=torch.uint8)
            return Splits(("noise",), ImagesInMemory(image, torch.zeros(len(image), dtype=torch.int64)))

    return Noise(batch)


def _fit(recipe: Any, data: Any, steps: int, **arguments: Any) -> float:
    """Seconds per step of a run of the Trainer, after the first few."""
    from lightning.pytorch import Callback

    from benchmarks.common import trainer

    warmup = min(8, steps)

    class Clock(Callback):
        def on_train_batch_end(self, it: Any, *_: Any) -> None:
            if it.global_step == warmup:
                _finish()
                self.start = time.perf_counter()

        def on_train_end(self, *_: Any) -> None:
            _finish()
            self.seconds = (time.perf_counter() - self.start) / steps

    clock = Clock()
    callbacks = [clock, *arguments.pop("callbacks", [])]
    accelerator = "gpu" if _device() == "cuda" else "cpu"
    it = trainer(accelerator=accelerator, max_steps=steps + warmup, callbacks=callbacks, **arguments)
    with contextlib.redirect_stderr(io.StringIO()):
        it.fit(recipe, data)
    return clock.seconds


def _alone(recipe: Any, size: int, batch: int, steps: int) -> Callable[[], float]:
    """Forward and backward of a copy of the encoder on two ready views of every image."""
    import copy

    import torch

    encoder = copy.deepcopy(recipe.encoder).to(_device())
    image = torch.rand(2 * batch, 3, size, size, device=_device()).contiguous(memory_format=torch.channels_last)

    def once() -> None:
        encoder.zero_grad()
        with torch.autocast(_device(), torch.bfloat16):
            feature = encoder(image)
        feature.float().sum().backward()

    return lambda: _seconds(once, steps)


def _views(recipe: Any, size: int, batch: int, steps: int) -> Callable[[], float]:
    """Both views of every image of a batch."""
    import torch

    from recipes.augment import Key

    image = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=_device())
    index = torch.arange(batch, device=_device())

    def once() -> None:
        for view in (0, 1):
            recipe.views(image, Key(0, 0, index, view))

    return lambda: _seconds(once, steps)


# Operations


def _losses(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    found: dict[int, Any] = {}
    for images in (256, 1024, 4096, 16384, 65536) if not options.tiny else (64,):
        z = [torch.randn(images, 128, device=_device()).requires_grad_() for _ in range(2)]
        peer, losses = _peer()
        peaks: dict[str, float] = {}
        able: dict[str, Callable[[], float]] = {}
        for name, loss in losses.items():
            once = partial(_pass, loss, z)
            try:
                peaks[name] = _peak(once)
                able[name] = partial(_seconds, once, 5)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
        seconds = take_turns(able, options.rounds)
        found[images] = {"seconds": seconds, "median": medians(seconds), "peak_mb": peaks, "peer": peer}
        found[images] |= {"ratio": ratio(seconds, "recipes", peer)} if peer in able else {}
    return {"task": "NT-Xent, forward and backward, float32, embeddings of 128 numbers", "images": found}


def _pass(loss: Any, z: list[Any]) -> None:
    z[0].grad = z[1].grad = None
    loss(*z).backward()


def _peer() -> tuple[str, dict[str, Any]]:
    import torch
    from torch.nn import functional as F

    from losses import NTXent

    def all_pairs(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        z = F.normalize(torch.cat([z1, z2]))
        logits = (z @ z.T / 0.1).fill_diagonal_(-torch.inf)
        other = torch.arange(len(z), device=z.device).roll(len(z1))
        return F.cross_entropy(logits, other)

    try:
        from lightly.loss import NTXentLoss
    except ImportError:
        return "all pairs at once", {"recipes": NTXent(0.1), "all pairs at once": all_pairs}
    return "lightly", {"recipes": NTXent(0.1), "lightly": NTXentLoss(0.1)}


def _batch_norm(options: argparse.Namespace) -> dict[str, Any]:
    """On one device in a group of one process, where nothing is sent: what the layer itself costs."""
    import torch
    from torch import distributed
    from torch.nn import functional as F

    from recipes.nn import norm

    shape = (512, 64, 32, 32) if not options.tiny else (8, 4, 4, 4)
    x = torch.randn(shape, device=_device()).contiguous(memory_format=torch.channels_last).requires_grad_()
    state = [torch.zeros(shape[1], device=_device()), torch.ones(shape[1], device=_device())]
    affine = [torch.ones(shape[1], device=_device(), requires_grad=True) for _ in range(2)]

    def once(function: Any) -> None:
        function(x, *state, *affine, training=True).sum().backward()

    with tempfile.TemporaryDirectory() as folder:
        store = f"file://{folder}/store"
        backend = "nccl" if _device() == "cuda" else "gloo"
        distributed.init_process_group(backend, store, rank=0, world_size=1)
        try:
            turns = {
                "across devices": lambda: _seconds(lambda: once(norm._batch_norm_across), 20),
                "F.batch_norm": lambda: _seconds(lambda: once(F.batch_norm), 20),
            }
            seconds = take_turns(turns, options.rounds)
        finally:
            distributed.destroy_process_group()
    return {
        "task": f"forward and backward of {list(shape)} float32, one process",
        "seconds": seconds,
        "median": medians(seconds),
        "ratio": ratio(seconds, "across devices", "F.batch_norm"),
    }


def _probe(options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from recipes.evaluation.features import Features
    from recipes.evaluation.linear import linear_probe
    from recipes.evaluation.neighbours import knn

    bank_size, queries, width, classes = (320_000, 10_000, 2048, 1000) if not options.tiny else (200, 20, 16, 5)
    generator = torch.Generator(_device()).manual_seed(0)

    def features(count: int) -> Features:
        label = torch.arange(count, device=_device()) % classes
        centre = torch.randn(classes, width, device=_device(), generator=torch.Generator(_device()).manual_seed(1))
        x = torch.randn(count, width, device=_device(), generator=generator) * 3
        return Features(x.add_(centre[label]), label, torch.arange(count, device=_device()))

    bank, query = features(bank_size), features(queries)
    found: dict[str, Any] = {"task": f"{queries:,} images, bank of {bank_size:,} × {width} float32, {classes} classes"}
    found["bank_mb"] = megabytes = round(bank.feature.nbytes / 1e6, 3)
    for name, measure in {"knn": knn, "linear": linear_probe}.items():
        answers: list[Any] = []
        start = time.perf_counter()
        peak = _peak(partial(_keep, answers, measure, bank, query, classes))
        found[f"{name}_seconds"] = round(time.perf_counter() - start, 2)
        found[f"{name}_peak_over_bank"] = round((peak + megabytes) / megabytes, 3)
        found[f"{name}_accuracy"] = round(float((answers[0] == query.label).float().mean()), 4)
    return found


def _keep(answers: list[Any], measure: Any, *args: Any) -> None:
    answers.append(measure(*args))


def _files(options: argparse.Namespace) -> dict[str, Any]:
    import numpy as np
    from PIL import Image

    from datamodules import ImageFolder

    count, side = (2048, 256) if not options.tiny else (24, 32)
    workers = min(16, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for number in range(count):
            path = Path(folder) / f"class{number % 4}" / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            rough = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC).save(path, quality=90)
        data = ImageFolder(folder, image_size=side * 7 // 8, batch_size=max(2, count // 16), num_workers=workers)
        data.setup()
        loader = data.train_dataloader()
        speeds = []
        for turn in range(1 + options.rounds):
            start = time.perf_counter()
            seen = sum(len(batch.image) for batch in loader)
            if turn:
                speeds.append(round(seen / (time.perf_counter() - start), 1))
    return {"task": f"JPEG of {side} pixels, {workers} workers", "images_per_second": speeds}


# Recipes


def _recipes(options: argparse.Namespace) -> dict[str, Any]:
    """Runs every config on the digits for a few steps, several at a time."""
    from recipes.cli.catalogue import config_names

    names = [name for name in config_names() if name.endswith("-digits")]
    teacher = "teacher-digits"
    found: dict[str, Any] = {}
    processes = ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn"))
    with tempfile.TemporaryDirectory() as folder, processes as pool:
        found[teacher] = pool.submit(_short_run, teacher, folder, None).result()
        rest = [name for name in names if name != teacher][: 1 if options.tiny else None]
        runs = {name: pool.submit(_short_run, name, folder, f"{folder}/{teacher}") for name in rest}
        found |= {name: future.result() for name, future in runs.items()}
    return {
        "failed": {name: run["error"] for name, run in found.items() if "error" in run},
        "waits_per_step": {
            name: round(sum(run["waits"].values()) / run["steps"], 2)
            for name, run in found.items()
            if "error" not in run and run["steps"]
        },
        "runs": found,
    }


def _short_run(name: str, folder: str, teacher: str | None) -> dict[str, Any]:
    """One epoch at most, with its validation and its test; what its training steps waited for."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import yaml

    from recipes.cli import main
    from recipes.cli.catalogue import config_file

    quiet()
    path = Path(folder) / f"waits-{name}.json"
    model = yaml.safe_load(config_file(name).read_text())["model"]
    needs_teacher = "teacher" in model.get("init_args", {})
    one_epoch = {} if name.startswith("svm") else {"trainer.max_steps": 12}
    options = {
        "config": name,
        "runs": folder,
        **one_epoch,
        **({"model.teacher": teacher} if needs_teacher else {}),
        "trainer.accelerator": "gpu" if _device() == "cuda" else "cpu",
        "trainer.devices": 1,
        "trainer.precision": "bf16-mixed",
        "trainer.log_every_n_steps": 1000,
        "trainer.enable_progress_bar": "false",
        "trainer.callbacks": "benchmarks._waits.Waits",
        "trainer.callbacks.path": path,
    }
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(["fit", *(f"--{option}={value}" for option, value in options.items())])
    except (Exception, SystemExit) as error:
        last = (said.getvalue().strip().splitlines() or [""])[-1]
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
        place = f"{Path(where[-1].filename).name}:{where[-1].lineno}" if where else ""
        return {"error": f"{type(error).__name__}: {str(error)[:300]} ({place}) {last[:300]}"}
    return json.loads(path.read_text()) if path.exists() else {"steps": 0, "waits": {}}


# Clocks


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _finish() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _seconds(once: Callable[[], Any], times: int) -> float:
    """Seconds that one call takes on the device, the mean of several."""
    once()
    _finish()
    start = time.perf_counter()
    for _ in range(times):
        once()
    _finish()
    return (time.perf_counter() - start) / times


def _peak(once: Callable[[], Any]) -> float:
    """How many MB of the device's memory a call needs beyond what is held before it; 0 on a CPU."""
    import torch

    if not torch.cuda.is_available():
        once()
        return 0.0
    _finish()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    once()
    _finish()
    return round((torch.cuda.max_memory_allocated() - before) / 1e6, 1)
