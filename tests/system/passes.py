"""Counts how often each test image passes each network in a test."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor

from recipes.nn import Encoder


class Passes(Callback):
    """Writes, for each network, how often it encoded the test images in ``Trainer.test``: the least and the most often.

    Args:
        path: of the JSON file, with an entry for the recipe's own encoder (``encoder``) and for every other one.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.counts: dict[str, Counter[bytes]] = {}
        self.hooks: list[Any] = []

    def on_test_start(self, trainer, pl_module):
        for name, encoder in self.networks(pl_module).items():
            count = self.counts[name] = Counter()
            self.hooks.append(encoder.register_forward_pre_hook(lambda _, args, count=count: count.update(rows(*args))))

    def on_test_end(self, trainer, pl_module):
        for hook in self.hooks:
            hook.remove()
        split = trainer.datamodule.splits.test
        given = split.images(torch.arange(len(split)))
        found = {}
        for name, count in self.counts.items():
            of_images = [count[row] for row in rows(self.recipe_of(name, pl_module).normalize(given))]
            found[name] = [min(of_images), max(of_images)]
        Path(self.path).write_text(json.dumps(found))

    def networks(self, recipe):
        found = {name: module for name, module in recipe.named_modules() if isinstance(module, Encoder)}
        for number, teacher in enumerate(self.teachers(recipe)):
            found[f"teacher {number}"] = teacher.encoder
        return found

    def teachers(self, recipe):
        return recipe.teacher.members if getattr(recipe, "has_teacher", False) else []

    def recipe_of(self, name, recipe):
        """Whose mean and standard deviation a network's images are normalised with."""
        return self.teachers(recipe)[int(name.split()[1])] if name.startswith("teacher ") else recipe


def rows(image: Tensor) -> list[bytes]:
    """Each of images [B, C, H, W] as bytes, the same in any precision."""
    return [row.tobytes() for row in (1000 * image.detach().double()).round().int().contiguous().cpu().numpy()]
