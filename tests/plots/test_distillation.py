import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.text import Text

from recipes.evaluation.calibration import Predictions, comparison, reliability
from recipes.plots.distillation import agreement, calibration, softened, spread

NAMES = ("cat", "dog", "owl")


def softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp(logits - logits.max())
    return exp / exp.sum()


def error_by_hand(logits: np.ndarray, label: np.ndarray, temperature: float = 1.0) -> float:
    """Bin by bin: how far accuracy and mean confidence are apart, weighed by the share of the images."""
    total = 0.0
    probability = [softmax(row / temperature) for row in logits]
    for m in range(15):
        inside = [i for i, p in enumerate(probability) if m / 15 < p.max() <= (m + 1) / 15]
        if inside:
            right = sum(probability[i].argmax() == label[i] for i in inside) / len(inside)
            sure = sum(probability[i].max() for i in inside) / len(inside)
            total += len(inside) / len(logits) * abs(right - sure)
    return total


def texts(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def predictions(classes: int, images: int = 300) -> tuple[Predictions, list[str]]:
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, classes, (images,), generator=generator)
    teacher = torch.randn(images, classes, generator=generator, dtype=torch.float64)
    teacher[torch.arange(images), label] += 5
    student = teacher + torch.randn(images, classes, generator=generator, dtype=torch.float64)
    return Predictions(teacher, student, label, torch.arange(images)), [f"a $name_ {i}" for i in range(classes)]


def test_images_are_chosen_at_equal_distances_in_the_order_of_entropy() -> None:
    assert spread(torch.tensor([0.3, 0.1, 0.2, 0.5, 0.4]), 3).tolist() == [1, 0, 3]
    assert spread(torch.tensor([0.3, 0.1]), 6).tolist() == [1, 0]


@pytest.mark.parametrize("classes", [2, 10, 11, 1000])
def test_of_many_classes_the_ten_most_probable_are_drawn(classes: int) -> None:
    test, names = predictions(classes)
    figure = softened(torch.rand(2, 3, 8, 8), test.teacher[:2], test.label[:2], names, 300)
    panel = figure.axes[1]
    expected = list(range(classes))
    if classes > 10:
        expected = sorted(expected, key=lambda i: -test.teacher[0, i].item())[:10]
    assert [label.get_text() for label in panel.get_yticklabels()] == [names[i] for i in expected]
    heading = "of the 10 most probable of 1,000 classes" if classes == 1000 else "probabilities"
    assert any(heading in text for text in texts(figure))


@pytest.mark.slow
def test_all_pictures_of_a_thousand_classes_are_drawn(tmp_path: Path) -> None:
    test, names = predictions(1000)
    agreement(test, names).savefig(tmp_path / "agreement.png", dpi=30)
    calibration(test, {"teacher": 2.0, "student": 0.5}).savefig(tmp_path / "calibration.png", dpi=30)
    found = comparison(test, {}, 0)
    assert found["teacher_entropy_bits"]["40"] == pytest.approx(math.log2(1000), abs=0.01)


def test_rows_of_the_agreement_are_the_teachers_predictions() -> None:
    logits = torch.eye(3, dtype=torch.float64)
    test = Predictions(logits[[0, 0, 1]], logits[[0, 2, 1]], torch.tensor([1, 1, 1]), torch.arange(3))
    figure = agreement(test, NAMES)
    matrix = figure.axes[0].images[0].get_array()
    assert matrix[0].tolist() == [50, 0, 50]
    assert matrix[1].tolist() == [0, 100, 0]
    assert figure.axes[0].get_ylabel() == "teacher's prediction"
    assert any("they agree on 66.7 %" in text and "grey" in text for text in texts(figure))


def test_the_diagram_shows_accuracy_gap_and_share() -> None:
    test, _ = predictions(5)
    figure = calibration(test, {"teacher": 2.0, "student": 0.5})
    titles = [axes.get_title().split("\n")[0] for axes in figure.axes]
    assert titles == ["teacher, as it is", "teacher, T = 2", "student, as it is", "student, T = 0.5"]
    for axes, logits in zip(figure.axes, (test.teacher, test.teacher / 2, test.student, test.student * 2)):
        bins = reliability(logits, test.label)
        heights = [bar.get_height() for bar in axes.containers[0]]
        np.testing.assert_allclose(heights, 100 * bins.accuracy)
        gaps = [bar.get_height() for bar in axes.containers[1]]
        np.testing.assert_allclose(gaps, 100 * np.abs(bins.accuracy - bins.confidence), atol=1e-9)
        assert f"calibration error {100 * error_by_hand(logits.numpy(), test.label.numpy()):.1f} %" in axes.get_title()
