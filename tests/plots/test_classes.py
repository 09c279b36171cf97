from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from recipes.evaluation.classification import Mistake
from recipes.plots.classes import confusion_matrix, mistake_sheet

NAMES = ("cat", "dog", "owl")


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.mark.parametrize("classes", [2, 20, 21, 120])
def test_the_matrix_names_its_classes_and_counts_images_where_there_is_room(classes: int) -> None:
    matrix = np.diag(np.arange(classes) + 1001)
    names = [f"class {i}" for i in range(classes)]
    figure = confusion_matrix(matrix, names)
    shown = names if classes <= 100 else names[::2]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == shown
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == shown
    counted = [text for text in texts(figure) if text.isdigit() and int(text) > 1000]
    assert counted == ([str(i + 1001) for i in range(classes)] if classes <= 20 else [])


def test_the_colour_is_the_share_of_the_true_class_and_grey_where_that_has_no_images() -> None:
    figure = confusion_matrix(np.array([[3, 1, 0], [0, 0, 0], [0, 10, 10]]), NAMES)
    drawn = figure.axes[0].images[0].get_array()
    assert drawn[[0, 2]].tolist() == [[75, 25, 0], [0, 50, 50]]
    assert drawn.mask[1].all() or np.isnan(drawn.data[1]).all()
    assert any("grey: no images" in text for text in texts(figure))


def test_names_of_any_length_and_with_any_sign_are_drawn(tmp_path: Path) -> None:
    names = ["a price of $_$ 5", "a very long name of a class that nobody wants to read", "ok"]
    file = f"{'x' * 50}_7$_$\udcff.png"
    figure = mistake_sheet(torch.rand(1, 3, 8, 8), [Mistake(0, f"a/{file}", names[0], names[1], 0.987)], "title")
    figure.savefig(tmp_path / "mistakes.png")
    confusion_matrix(np.eye(3, dtype=int), names).savefig(tmp_path / "confusion.png")
    (caption,) = [text for text in texts(figure) if "→" in text and "\n" in text and "99 %" in text]
    true, predicted, end = caption.split("\n")
    assert true == names[0]
    assert predicted == "→ a very long na…  99 %"
    assert end == f"…{'x' * 8}_7$_$\\xff.png"
