"""On a GPU, the host draws views without waiting for the device."""

import inspect

import pytest
import torch

import recipes.augment
from recipes.augment import DeiTViews, Key, RandAugment, RandomErasing, Views
from recipes.augment.base import constants
from tests.helpers.fake_cuda import fake_cuda

WAITS = {  # why they do: each image gets work of its own, which costs more than the wait where all get all of it
    RandAugment: "an operation works on its own images alone",
    RandomErasing: "noise is drawn for the erased images alone",
    DeiTViews: "both of them",
}
CLASSES = [getattr(recipes.augment, name) for name in recipes.augment.__all__]
ALL = [kind for kind in CLASSES if inspect.isclass(kind) and issubclass(kind, Views) and not inspect.isabstract(kind)]
WITHOUT_ARGUMENTS = [
    kind
    for kind in ALL
    if all(p.default is not p.empty or p.kind == p.VAR_KEYWORD for p in inspect.signature(kind).parameters.values())
]


@pytest.fixture(autouse=True)
def _no_fake_numbers_are_kept():
    yield
    constants.cache_clear()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in WITHOUT_ARGUMENTS if kind not in WAITS])
def test_views_do_not_wait(kind):
    views = kind()
    with fake_cuda() as noted:
        image = torch.zeros(8, 3, 32, 32, dtype=torch.uint8, device="cuda")
        index = torch.arange(8, device="cuda")
        views(image, Key(0, 0, index, 0))  # numbers are copied to the device once
        with noted() as waits:
            for view in (0, 1):
                assert views(image, Key(0, 1, index, view)).is_cuda
    assert not waits


def test_most_views_are_looked_at():
    assert len(WITHOUT_ARGUMENTS) >= len(ALL) - 1
