import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recipes.nn import Shuffle
from tests.helpers.fake_cuda import fake_cuda
from tests.helpers.processes import run


class Exchanged(TorchDispatchMode):
    """Counts the bytes that this process receives from all devices, by operation."""

    def __init__(self):
        super().__init__()
        self.bytes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "c10d":
            self.bytes[func._schema.name] = args[0].nbytes
        return func(*args, **(kwargs or {}))


def rows_of(devices, rows, rank):
    return torch.arange(rank * rows * 3, (rank + 1) * rows * 3, dtype=torch.uint8).view(rows, 3)


def shuffled(order, devices, rows):
    rank = torch.distributed.get_rank() if devices > 1 else 0
    with Exchanged() as exchanged:
        mine = Shuffle(order, devices, rank)(rows_of(devices, rows, rank))
    return mine.tolist(), exchanged.bytes


@pytest.mark.parametrize("kind", ["random", "reversed", "in place"])
def test_each_device_gets_its_share_of_the_order_and_no_more_bytes(kind):
    rows, devices = 6, 3
    order = torch.arange(rows * devices)
    order = {"random": torch.randperm(len(order)), "reversed": order.flip(0), "in place": order}[kind]
    everyones = torch.cat([rows_of(devices, rows, rank) for rank in range(devices)])
    found = run(shuffled, order, devices, rows, processes=3)
    for (mine, exchanged), expected in zip(found, everyones[order].chunk(devices), strict=True):
        assert mine == expected.tolist()
        assert exchanged == {"c10d::alltoall_base_": rows * 3}


def test_one_device_reorders_its_rows():
    order = torch.tensor([2, 0, 1])
    assert shuffled(order, 1, 3)[0] == rows_of(1, 3, 0)[order].tolist()


def test_the_host_waits_for_a_gpu_only_once_the_rows_are_asked_for():
    with fake_cuda() as noted, noted() as waits:
        Shuffle(torch.arange(6, device="cuda"), 2, 0)
    assert not waits
