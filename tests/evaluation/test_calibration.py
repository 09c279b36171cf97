import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.evaluation.calibration import (
    BINS,
    CalibrationError,
    best_temperature,
    calibration_error,
    entropy,
    reliability,
)
from tests.plots.test_distillation import error_by_hand


def drawn_from(logits: Tensor, seed: int) -> Tensor:
    return torch.multinomial(logits.softmax(1), 1, generator=torch.Generator().manual_seed(seed)).flatten()


def test_temperature_scaling_finds_the_factor_that_true_logits_were_multiplied_by() -> None:
    true = 2 * torch.randn(20_000, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = drawn_from(true, 1)
    assert best_temperature(2.5 * true.log_softmax(1), label) == pytest.approx(2.5, rel=0.03)
    assert calibration_error(2.5 * true, label) > 0.1
    assert calibration_error(true, label) < 0.02


def test_the_best_probabilities_are_one_if_all_images_are_right_and_even_if_none_is() -> None:
    logits, label = torch.eye(4, dtype=torch.float64), torch.arange(4)
    assert (logits / best_temperature(logits, label)).softmax(1).diagonal().tolist() == [1] * 4
    assert best_temperature(-logits, label) == pytest.approx(100, rel=1e-3)


def test_the_bins_that_are_drawn_are_those_of_the_error() -> None:
    logits = 2 * torch.randn(500, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = drawn_from(logits / 2, 1)
    bins = reliability(logits, label)
    assert bins.count.sum() == 500
    gaps = np.nan_to_num(np.abs(bins.accuracy - bins.confidence))
    expected = error_by_hand(logits.numpy(), label.numpy())
    assert (bins.count * gaps).sum() / 500 == pytest.approx(expected, rel=1e-9)
    assert calibration_error(logits, label) == pytest.approx(expected, abs=1e-6)


def test_an_image_that_is_certain_is_in_the_last_bin() -> None:
    logits = torch.tensor([[100.0, 0.0]], dtype=torch.float64)
    bins = reliability(logits, torch.tensor([0]))
    assert bins.count.tolist() == [0] * (BINS - 1) + [1]
    assert (bins.accuracy[-1], bins.confidence[-1]) == (1, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_that_are_certain_share_the_last_bin_with_those_that_nearly_are(dtype: torch.dtype) -> None:
    """With the label wrong for the certain one alone, |(1 + 0.95) - 1| / 2, and not (1 + 0.05) / 2."""
    logits = torch.tensor([[200.0, 0.0], [np.log(19), 0.0]], dtype=dtype)
    label = torch.tensor([1, 0])
    assert calibration_error(logits, label) == pytest.approx(0.95 / 2, rel=1e-6)
    metric = CalibrationError()  # in batches, as of a test
    for row in ([0], [1], [1]):
        metric.update(logits[row], label[row] if row != [1] or not metric.count.sum() > 1 else torch.tensor([-1]))
    assert metric.compute().item() == pytest.approx(0.95 / 2, rel=1e-6)


def test_the_entropy_is_maximal_at_a_high_temperature_and_zero_for_a_certain_class() -> None:
    logits = torch.tensor([[1000.0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.float64)
    assert entropy(logits).tolist() == [0, 2]
    assert entropy(logits, 1e9)[0].item() == pytest.approx(2)
