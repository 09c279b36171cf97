import torch
from matplotlib import pyplot

from recipes.plots.base import image_grid
from recipes.plots.training import loss_curve


def test_drawing_leaves_pyplot_alone() -> None:
    loss_curve([1, 2], [1.0, 0.5])
    image_grid([[torch.rand(3, 8, 8)]], "title", ["head"])
    assert pyplot.get_fignums() == []
