"""How fast batches of uint8 images arrive, against torchvision's datasets in torch's DataLoader, and lightly's.

In memory: 32 × 32 RGB images, decoded before. From files: the same images as JPEG files, decoded at every turn by two
workers. The libraries take turns; each turn runs through all images once, after its workers have started.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import medians, quiet, ratio, take_turns, versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data/cifar10-jpeg"), help="folder of class folders")
    parser.add_argument("--batch", type=int, default=256, help="number of images")
    parser.add_argument("--rounds", type=int, default=3, help="how often each takes its turn")


def run(options: argparse.Namespace) -> dict[str, Any]:
    from lightly.data import LightlyDataset
    from torch.utils.data import DataLoader, Dataset
    from torchvision.datasets import ImageFolder as TorchvisionFolder
    from torchvision.transforms import PILToTensor

    from datamodules import ImageFolder

    quiet()
    train = options.root / "train"
    kinds: dict[str, dict[str, Callable[[], float]]] = {}
    ours = ImageFolder(options.root, image_size=32, cache=True, batch_size=options.batch)
    ours.setup("fit")
    assert ours.splits.train is not None
    images = ours.splits.train.__getitems__(list(range(len(ours.splits.train))))

    class Pictures(Dataset):  # as torchvision's CIFAR10: an array in memory, a picture of PIL for each image
        def __len__(self) -> int:
            return len(images.image)

        def __getitem__(self, index: int) -> Any:
            from PIL import Image

            picture = Image.fromarray(images.image[index].permute(1, 2, 0).numpy())
            return PILToTensor()(picture), int(images.label[index])

    def loader(dataset: Any, workers: int) -> Any:
        return DataLoader(
            dataset, options.batch, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )

    kinds["in memory"] = {
        "recipes": _turn(ours.train_dataloader()),
        "torchvision": _turn(loader(Pictures(), 0)),
        "torchvision, two workers": _turn(loader(Pictures(), 2)),
    }
    files = ImageFolder(options.root, image_size=32, memory_limit=0, batch_size=options.batch, num_workers=2)
    files.setup("fit")
    kinds["from files"] = {
        "recipes": _turn(files.train_dataloader()),
        "torchvision": _turn(loader(TorchvisionFolder(train, PILToTensor()), 2)),
        "lightly": _turn(loader(LightlyDataset(str(train), transform=PILToTensor()), 2)),
    }
    speed = {kind: take_turns(turns, options.rounds) for kind, turns in kinds.items()}
    return {
        "task": f"batches of {options.batch} labelled uint8 images of 32 x 32 RGB, two workers where files are decoded",
        "unit": "images per second",
        "images_per_second": speed,
        "median": {kind: medians(runs) for kind, runs in speed.items()},
        "times_as_fast_as": {
            kind: {name: ratio(runs, "recipes", name) for name in runs if name != "recipes"}
            for kind, runs in speed.items()
        },
        "versions": versions("torchvision", "lightly"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    return [
        [f"batches of 32 × 32 images {kind}", name, f"{value:.1f} times as many per second"]
        for kind, ratios in result["times_as_fast_as"].items()
        for name, value in ratios.items()
    ]


def _turn(loader: Any) -> Callable[[], float]:
    def turn() -> float:
        batches = iter(loader)
        next(batches)  # workers start
        start = time.perf_counter()
        count = sum(len(batch[0]) for batch in batches)
        return count / (time.perf_counter() - start)

    return turn
