import pytest
import torch
from torch import nn

from recipes.evaluation.representation import Pixels, draws_of_few_labels, have_same_weights, summary


def test_draws_are_summed_up_and_single_numbers_kept() -> None:
    found = summary({"raw pixels": {"knn": [0.5], "knn_1_per_class": [0.25, 0.75]}})
    assert found == {"raw_pixels": {"knn": 0.5, "knn_1_per_class": {"mean": 0.5, "std": pytest.approx(0.5**1.5)}}}


def test_pixels_of_large_images_are_means_over_areas() -> None:
    image = torch.randint(0, 256, (2, 3, 64, 16), dtype=torch.uint8)
    expected = image.float().view(2, 3, 32, 2, 16).mean(3) / 255
    torch.testing.assert_close(Pixels()(image), expected.flatten(1))
    torch.testing.assert_close(Pixels()(image.float() / 255), expected.flatten(1))


def test_a_column_is_left_out_with_a_reason_where_a_class_has_too_few_images() -> None:
    found, missing = draws_of_few_labels(torch.tensor([0, 0, 0, 1, 1]), 2, [1, 3], 4, 0, ["cat", "dog"])
    assert {n: rows.shape for n, rows in found.items()} == {1: (4, 2)}
    assert missing == ["no results for 3 labels per class: class 1 (dog) has 2 labelled images, a draw needs 3"]


def test_a_copy_has_the_same_weights_until_one_changes() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    other.load_state_dict(one.state_dict())
    assert have_same_weights(one, other)
    with torch.no_grad():
        other.bias[1] += 1
    assert not have_same_weights(one, other)
