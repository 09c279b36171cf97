import math

import pytest
import torch

from recipes.evaluation.collapse import effective_rank
from recipes.nn import feature_std


def test_features_at_both_ends_of_every_axis_are_spread_evenly() -> None:
    for width in (2, 5, 64):
        corners = torch.cat([torch.eye(width), -torch.eye(width)])
        # each dimension is ±1 twice in 2F points and 0 otherwise: variance 1 / F
        assert feature_std(7 * corners).item() == pytest.approx(1, abs=1e-6)


def test_features_that_differ_only_in_length_do_not_spread() -> None:
    assert feature_std(torch.tensor([[1.0, 2.0], [2.0, 4.0], [0.5, 1.0]])).item() == pytest.approx(0, abs=1e-6)


def test_feature_std_of_two_directions() -> None:
    # (1, 0) and (0, 1): standard deviation 1/2 in both dimensions, times sqrt(2)
    assert feature_std(torch.tensor([[3.0, 0.0], [0.0, 1.0]])).item() == pytest.approx(math.sqrt(2) / 2)


def test_effective_rank_counts_orthogonal_directions_of_equal_strength() -> None:
    feature = torch.zeros(10, 8)
    for rank in range(1, 9):
        feature[rank - 1, rank - 1] = 3.0
        assert effective_rank(feature).item() == pytest.approx(rank, rel=1e-4)


def test_effective_rank_of_unequal_directions_is_the_exponential_of_their_entropy() -> None:
    feature = torch.diag(torch.tensor([4.0, 2.0, 2.0]))  # p = 1/2, 1/4, 1/4: entropy 3/2 ln 2
    assert effective_rank(feature).item() == pytest.approx(2**1.5, rel=1e-5)


def test_effective_rank_is_one_where_all_is_zero_and_nan_where_training_diverged() -> None:
    assert effective_rank(torch.zeros(6, 3)).item() == pytest.approx(1, abs=1e-4)
    assert effective_rank(torch.tensor([[1.0, float("inf")], [0.0, 1.0]])).isnan()
