import pytest
from torch import nn

from recipes.nn import has_local_batch_norm


@pytest.mark.parametrize(
    ("module", "local"),
    [
        (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), True),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.SyncBatchNorm(2)), False),
        (nn.Sequential(nn.LayerNorm(2), nn.GroupNorm(1, 2)), False),
    ],
)
def test_batch_norm_is_local_unless_it_is_synchronised(module, local):
    assert has_local_batch_norm(module) is local
