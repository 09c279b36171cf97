"""A training step of SimCLR, data and logging and all, against its encoder alone, and against lightly's SimCLR.

ResNet-20 on 32 × 32 RGB pictures in bf16-mixed with batch 256, as the config simclr-cifar10-small. After every step a
copy of the encoder passes forward and backward over as many ready float images, so that both have the same machine.
Lightly's SimCLR is that of its documentation, with the same encoder, optimiser and views, loaded by two workers.
"""

import argparse
import copy
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.common import quiet, simclr, trainer, versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data/cifar10-jpeg"), help="folder of class folders")
    parser.add_argument("--batch", type=int, default=256, help="number of images")
    parser.add_argument("--steps", type=int, default=60, help="how many steps are timed")
    parser.add_argument("--rounds", type=int, default=3, help="how often ours and lightly's take their turn")
    parser.add_argument("--warmup", type=int, default=5, help="how many steps of each turn are not timed")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from lightning.pytorch import seed_everything

    quiet()
    seed_everything(0, verbose=False)
    ours: list[float] = []
    bare: list[float] = []
    ratio_to_lightly: list[float] = []
    lightly: list[float] = []
    for _ in range(options.rounds):
        step, alone = _ours(options, options.steps // options.rounds)
        theirs = _lightly(options, options.steps // options.rounds)
        ours, bare, lightly = ours + step, bare + alone, lightly + theirs
        ratio_to_lightly.append(statistics.median(step) / statistics.median(theirs))
    ratios = [step / alone for step, alone in zip(ours, bare)]
    return {
        "task": f"SimCLR, ResNet-20, batch {options.batch}, bf16-mixed, {torch.get_num_threads()} CPU threads",
        "steps": len(ours),
        "median_seconds_per_step": statistics.median(ours),
        "median_seconds_of_the_bare_encoder": statistics.median(bare),
        "median_seconds_per_step_of_lightly": statistics.median(lightly),
        "images_per_second": options.batch / statistics.median(ours),
        "ratio_of_sums": sum(ours) / sum(bare),
        "median_ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4),
        "median_ratio_to_lightly": statistics.median(ratio_to_lightly),
        "versions": versions("lightning", "lightly"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    what = f"training step of {result['task']}"
    return [
        [what, "its encoder alone", f"{result['median_ratio']:.2f} times its time"],
        [what, "lightly's", f"{result['median_ratio_to_lightly']:.2f} times its time"],
    ]


def _ours(options: argparse.Namespace, steps: int) -> tuple[list[float], list[float]]:
    """Seconds of each step, and of forward and backward of the encoder alone after it."""
    import torch

    from datamodules import ImageFolder
    from recipes.callbacks import CollapseMonitor, Health, RepresentationProbe

    recipe = simclr()
    encoder = copy.deepcopy(recipe.encoder)
    image = torch.rand(2 * options.batch, 3, 32, 32)

    def alone() -> None:
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            feature = encoder(image)
        feature.float().sum().backward()

    clock = _clock(alone)
    monitors = [RepresentationProbe(), CollapseMonitor(), Health(), clock]
    data = ImageFolder(options.root, image_size=32, cache=True, batch_size=options.batch)
    trainer(max_steps=steps + options.warmup, log_every_n_steps=10, callbacks=monitors).fit(recipe, data)
    return clock.step[options.warmup :], clock.other[options.warmup :]


def _lightly(options: argparse.Namespace, steps: int) -> list[float]:
    import torch
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform
    from lightning.pytorch import LightningModule

    from recipes.nn import ResNet

    class Lightly(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = ResNet(20).to(memory_format=torch.channels_last)
            self.head = SimCLRProjectionHead(64, 256, 128)
            self.criterion = NTXentLoss(temperature=0.1)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            z0, z1 = (self.head(self.backbone(view)) for view in batch[0])
            return self.criterion(z0, z1)

        def configure_optimizers(self) -> Any:
            return torch.optim.AdamW(self.parameters(), lr=1e-3)

    views = SimCLRTransform(input_size=32, cj_strength=0.5, min_scale=0.2, gaussian_blur=0.0)
    dataset = LightlyDataset(str(options.root / "train"), transform=views)
    loader = torch.utils.data.DataLoader(dataset, options.batch, shuffle=True, drop_last=True, num_workers=2)
    clock = _clock()
    trainer(max_steps=steps + options.warmup, callbacks=[clock]).fit(Lightly(), loader)
    return clock.step[options.warmup :]


def _clock(other: Any = None) -> Any:
    """A callback that times each step, and after it something else, from the end of the last measurement."""
    from lightning.pytorch import Callback

    class Clock(Callback):
        def __init__(self) -> None:
            self.step: list[float] = []
            self.other: list[float] = []

        def on_train_start(self, *_: Any) -> None:
            self.resumed = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            now = time.perf_counter()
            self.step.append(now - self.resumed)
            if other is not None:
                other()
                self.other.append(time.perf_counter() - now)
            self.resumed = time.perf_counter()

    return Clock()
