"""How long an epoch of a linear head takes on features computed once, against through the frozen encoder.

FineTune with all stages of ResNet-20 frozen, on 45,000 RGB images of 32 x 32 in memory. The bare loop is a linear
layer, cross-entropy and SGD in plain torch on as many features in memory.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import medians, quiet, ratio, take_turns, trainer, versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data/cifar10-jpeg"), help="folder of class folders")
    parser.add_argument("--batch", type=int, default=256, help="number of images")
    parser.add_argument("--rounds", type=int, default=3, help="how often each takes its turn")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from torch import nn
    from torch.nn import functional as F

    from datamodules import ImageFolder
    from recipes import FineTune
    from recipes.nn import ResNet

    quiet()
    torch.set_num_threads(options.threads)
    data = ImageFolder(options.root, image_size=32, cache=True, batch_size=options.batch)
    data.setup()

    class Unchanged(nn.Module):
        """Views that are the images, which pass the encoder anew every epoch."""

        def forward(self, image: Any, key: Any) -> Any:
            return image

    def epoch(views: Any, epochs: int) -> Callable[[], float]:
        def turn() -> float:
            recipe = FineTune(ResNet(20), data.num_classes, "feature-extraction", views=views, scheduler=None)
            clock = _Clock()
            trainer(max_epochs=epochs, callbacks=[clock.callback()], log_every_n_steps=10).fit(recipe, data)
            return min(clock.seconds)

        return turn

    feature = torch.randn(len(data.splits.train), 64)
    label = data.splits.train.label

    def bare() -> float:
        head = nn.Linear(64, data.num_classes)
        optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, nesterov=True)
        start = time.perf_counter()
        for rows in torch.randperm(len(label)).split(options.batch):
            optimizer.zero_grad()
            F.cross_entropy(head(feature[rows]), label[rows]).backward()
            optimizer.step()
        return time.perf_counter() - start

    turns = {"features computed once": epoch(None, 3), "through the encoder": epoch(Unchanged(), 1), "bare loop": bare}
    seconds = take_turns(turns, options.rounds, warmup=0)
    return {
        "task": f"an epoch of {len(label)} images, batch {options.batch}, bf16-mixed, {options.threads} CPU threads",
        "unit": "seconds",
        "seconds": seconds,
        "median": medians(seconds),
        "times_as_fast_as": {
            "through the encoder": ratio(seconds, "through the encoder", "features computed once"),
            "bare loop": ratio(seconds, "bare loop", "features computed once"),
        },
        "versions": versions("torchvision", "lightning"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    what = "epoch of a head on a frozen ResNet-20, features computed once"
    ratios = result["times_as_fast_as"]
    return [
        [what, "through the encoder every time", f"{ratios['through the encoder']:.0f} times as fast"],
        [what, "a bare loop of torch", f"{1 / ratios['bare loop']:.1f} times its time"],
    ]


class _Clock:
    """Seconds of each training epoch, without validation."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def callback(self) -> Any:
        from lightning.pytorch.callbacks import LambdaCallback

        return LambdaCallback(on_train_epoch_start=self._start, on_train_epoch_end=self._end)

    def _start(self, *_: object) -> None:
        self._started = time.perf_counter()

    def _end(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self._started)
