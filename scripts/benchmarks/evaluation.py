"""How long the evaluation at the end of a run takes, against the passes of its encoders through the images alone.

SimCLR as in the config simclr-cifar10-small, with all reports that measure (no pictures). The passes alone are those of
the trained and of the random ResNet-20 through the training and test images. Counted is how often the trained encoder
sees each test image.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import medians, quiet, ratio, simclr, take_turns, trainer, versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=Path("data/cifar10-jpeg"), help="folder of class folders")
    parser.add_argument("--batch", type=int, default=256, help="number of images")
    parser.add_argument("--rounds", type=int, default=3, help="how often each takes its turn")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")


def run(options: argparse.Namespace) -> dict[str, Any]:
    import torch
    from lightning.pytorch import seed_everything

    from datamodules import ImageFolder
    from recipes.callbacks import ClassReport, DistillationReport, RepresentationProbe

    quiet()
    torch.set_num_threads(options.threads)
    seed_everything(0, verbose=False)
    data = ImageFolder(options.root, image_size=32, val_fraction=0.05, cache=True, batch_size=options.batch)
    recipe = simclr()
    seen = {"trained encoder": 0}

    def count(module: Any, args: Any, output: Any) -> None:
        seen["trained encoder"] += len(output)

    with tempfile.TemporaryDirectory() as folder:
        reports = [RepresentationProbe(every_n_epochs=1), ClassReport(), DistillationReport()]
        it = trainer(max_steps=2, callbacks=reports, default_root_dir=folder)
        it.fit(recipe, data)
        recipe.encoder.register_forward_hook(count)
        processor: list[float] = []

        def evaluate() -> float:
            seen["trained encoder"] = 0
            start, own = time.perf_counter(), time.process_time()
            it.test(recipe, data, verbose=False)
            processor.append(round(time.process_time() - own, 3))
            return time.perf_counter() - start

        def alone() -> float:
            networks = torch.nn.Sequential(recipe.normalize, recipe.encoder).eval(), simclr().eval()
            start = time.perf_counter()
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                for loader in (data.bank_dataloader(), data.test_dataloader()):
                    for batch in loader:
                        for network in networks:
                            network(batch.image)
            return time.perf_counter() - start

        turns: dict[str, Callable[[], float]] = {"evaluation": evaluate, "passes alone": alone}
        seconds = take_turns(turns, options.rounds, warmup=0)
        evaluate()
    bank, test = len(data.splits.train), len(data.splits.test or ())
    return {
        "task": f"{bank:,} training and {test:,} test images, batch {options.batch}, bf16-mixed, "
        f"{options.threads} CPU threads",
        "unit": "seconds",
        "seconds": seconds,
        "median": medians(seconds),
        "processor_seconds_of_evaluation": processor[: options.rounds],
        "evaluation_over_passes_alone": ratio(seconds, "evaluation", "passes alone"),
        # The bank is encoded once, and setup tries the encoder on one image; the rest are passes of test images.
        "passes_over_test_images": (seen["trained encoder"] - bank - 1) / test,
        "versions": versions("torchvision", "lightning"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    what = "evaluation at the end of simclr-cifar10-small"
    return [
        [what, "passes of its two encoders alone", f"{result['evaluation_over_passes_alone']:.2f} times their time"]
    ]
