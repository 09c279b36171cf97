import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from torch import Tensor

from recipes.plots.continual import forgetting_bars, heat_map, over_tasks, task_names


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def random_matrices(tasks: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    aware = torch.rand(tasks + 1, tasks, generator=generator, dtype=torch.float64)
    return {"aware": aware, "agnostic": aware * torch.rand(aware.shape, generator=generator)}


def test_cells_have_their_number_where_there_is_room() -> None:
    matrices = random_matrices(12)
    matrices["agnostic"][5, 3] = math.nan
    names = task_names([[f"class {t}"] for t in range(12)])
    expected = sorted(f"{100 * x:.0f}" for m in matrices.values() for x in m.flatten().tolist() if not math.isnan(x))
    figure = heat_map(matrices, names)
    cells = [text.get_text() for axes in figure.axes[:2] for text in axes.texts if text.get_text()]
    assert sorted(cells) == expected
    drawn = [axes.images[0].get_array() for axes in figure.axes[:2]]
    for image, matrix in zip(drawn, matrices.values()):
        assert np.allclose(np.ma.filled(image, np.nan), 100 * matrix.numpy(), equal_nan=True)
    many = heat_map(random_matrices(13), task_names([[f"class {t}"] for t in range(13)]))
    assert not [text for axes in many.axes[:2] for text in axes.texts]


def test_lines_begin_with_their_task_and_the_mean_is_over_those_learned() -> None:
    matrices = random_matrices(4)
    for axes, matrix in zip(over_tasks(matrices, task_names([[str(t)] for t in range(4)])).axes, matrices.values()):
        *tasks, mean = axes.lines
        for task, line in enumerate(tasks):
            assert line.get_xdata().tolist() == list(range(task + 1, 5))
            assert line.get_ydata().tolist() == pytest.approx(
                [100 * matrix[t, task].item() for t in range(task + 1, 5)]
            )
        by_hand = [100 * sum(matrix[t, :t].tolist()) / t for t in range(1, 5)]
        assert list(mean.get_ydata()) == pytest.approx(by_hand)


def test_bars_of_forgetting_are_from_the_best_accuracy() -> None:
    matrices = random_matrices(4)
    (axes,) = forgetting_bars(matrices, task_names([[str(t)] for t in range(4)])).axes
    heights = [bar.get_height() for bar in axes.patches]
    by_hand = [
        100 * (max(m[t, j].item() for t in (1, 2, 3)) - m[4, j].item()) for m in matrices.values() for j in range(3)
    ]
    assert heights == pytest.approx(by_hand)


@pytest.mark.slow
def test_names_with_dollars_are_drawn_as_they_are(tmp_path: Path) -> None:
    names = task_names([["$\\frac", "a$"], ["$y", "b"]])
    for figure in (heat_map(random_matrices(2), names), over_tasks(random_matrices(2), names)):
        figure.savefig(tmp_path / "picture.png")
        assert {"1: $\\frac, a$", "2: $y, b"} <= set(texts(figure))
