import torch
from torch import nn

from datamodules import Tasks
from recipes import LwF
from recipes.evaluation.cost import memory
from recipes.nn import MLP

HIDDEN = 5


def test_memory_counts_each_tensor_once_and_names_those_a_plain_network_lacks() -> None:
    model = LwF(MLP(3, hidden=(HIDDEN,), batch_norm=False), Tasks((2, 2, 2), "class"), warmup_epochs=0)
    network = 4 * (9 * HIDDEN + HIDDEN + HIDDEN * 6 + 6)  # float32
    found = memory(model)
    assert found["parameters"] == network // 4
    assert found["bytes"]["parameters"] == 2 * network
    assert found["bytes"]["on_top"]["old_network"] == network
    assert found["bytes"]["on_top"]["own_labels"] == 3 * 6
    model.again = nn.ModuleList([model.head])  # the same tensors under another name
    model.store = nn.Module()
    model.store.register_buffer("image", torch.zeros(7, 1, 3, 3, dtype=torch.uint8))
    more = memory(model)
    assert more["bytes"]["parameters"] == 2 * network
    assert more["bytes"]["on_top"] == {**found["bytes"]["on_top"], "store": 63}
    assert more["bytes"]["buffers"] == found["bytes"]["buffers"] + 63
