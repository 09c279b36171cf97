"""SimCLR's two views (crop, flip, colour jitter, grey; no blur; normalised) on one core, against other libraries.

Counts the images that a second of one core's time turns into two views each; the libraries take turns.
"""

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.common import medians, take_turns, versions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=32, help="height and width of the images in pixels")
    parser.add_argument("--batch", type=int, default=256, help="number of images")
    parser.add_argument("--rounds", type=int, default=7, help="how often each library takes its turn")


def run(options: argparse.Namespace) -> dict[str, Any]:
    os.environ["OMP_NUM_THREADS"] = "1"
    import kornia.augmentation as kornia
    import torch
    from lightly.transforms import SimCLRTransform
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from recipes.augment import Key, Normalize, SimCLRViews

    torch.set_num_threads(1)
    # glibc gives large blocks back to the system, and asks for them again, until a process has used a larger one;
    # one that trains has.
    torch.empty(31 * 2**20, dtype=torch.uint8)
    size, batch = options.size, options.batch
    photos = torch.stack([torch.from_numpy(photo.copy()) for photo in load_sample_images().images]).permute(0, 3, 1, 2)
    tiles = torch.nn.functional.unfold(photos.float(), size, stride=max(1, size // 2)).permute(0, 2, 1)
    image = tiles.reshape(-1, 3, size, size)[:batch].to(torch.uint8).contiguous()  # uint8 [B, 3, size, size]
    batch = len(image)
    pictures = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in image]
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    views, normalize = SimCLRViews(strength=0.5, blur=0.0), Normalize()
    normalize.set(mean, std)
    key = Key(0, 0, torch.arange(batch))

    def ours() -> Any:
        return [normalize(views(image, key._replace(view=view))) for view in (0, 1)]

    lightly_views = SimCLRTransform(input_size=size, cj_strength=0.5, gaussian_blur=0.0)

    def lightly() -> Any:
        return [lightly_views(picture) for picture in pictures]

    kornia_views = kornia.AugmentationSequential(
        kornia.RandomResizedCrop((size, size), scale=(0.08, 1.0)),
        kornia.RandomHorizontalFlip(p=0.5),
        kornia.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        kornia.RandomGrayscale(p=0.2),
        kornia.Normalize(torch.tensor(mean), torch.tensor(std)),
        data_keys=["input"],
        same_on_batch=False,
    )

    def kornia_two() -> Any:
        floats = image.float() / 255
        return [kornia_views(floats) for _ in range(2)]

    def speed(views: Callable[[], Any], repeats: int) -> Callable[[], float]:
        def turn() -> float:
            start = time.process_time()
            for _ in range(repeats):
                views()
            return repeats * batch / (time.process_time() - start)

        return turn

    measured = take_turns(
        {"recipes": speed(ours, 20), "lightly": speed(lightly, 1), "kornia": speed(kornia_two, 4)}, options.rounds
    )
    median = medians(measured)
    return {
        "task": f"two SimCLR views of {batch} RGB uint8 images of {size} x {size}, one thread",
        "unit": "images per second of CPU time",
        "images_per_second": measured,
        "median": median,
        "times_as_fast_as": {name: median["recipes"] / median[name] for name in ("lightly", "kornia")},
        "versions": versions("torchvision", "lightly", "kornia"),
    }


def rows(result: dict[str, Any]) -> list[list[str]]:
    ratios = result["times_as_fast_as"].items()
    return [[result["task"], name, f"{value:.1f} times as many per second"] for name, value in ratios]
