import copy
import math
from collections import deque

import pytest
import torch

from recipes.nn import FeatureQueue, Memory, MemoryBank
from tests.helpers.processes import run

MEMORIES = [Memory, FeatureQueue, MemoryBank]


def features(n, dim=3, seed=0, dtype=torch.float32):
    """Of all lengths but one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=generator, dtype=dtype) * torch.linspace(0.1, 9, n)[:, None]


def unit(vector):
    """A list of length one, by scalar arithmetic."""
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


def sorted_rows(rows):
    return torch.tensor(sorted(list(rows) if isinstance(rows, deque) else rows.tolist()), dtype=torch.float64)


def first_of_another_seed(seed):
    torch.manual_seed(seed)
    return [memory(5, 4).features.tolist() for memory in MEMORIES]


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_memory_begins_with_unit_vectors_in_all_directions(memory):
    first = memory(2000, 8).features
    assert first.shape == (2000, 8)
    torch.testing.assert_close(first.norm(dim=1), torch.ones(2000))
    assert first.mean(0).abs().max() < 4 / math.sqrt(2000 * 8)  # of even directions: mean 0, variance 1 / (N D)
    assert (first.unique(dim=0)).shape == first.shape


@pytest.mark.slow
def test_every_process_begins_with_the_same_vectors_whatever_its_seed():
    (one,), (two,) = (run(first_of_another_seed, seed) for seed in (1, 2))
    assert one == two
    state = torch.get_rng_state()
    Memory(5, 4)
    assert torch.equal(torch.get_rng_state(), state)  # and takes no number of anybody else's


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_memory_has_the_default_type_no_parameters_and_a_length(memory):
    try:
        torch.set_default_dtype(torch.float64)
        wide = memory(6, 2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert wide.features.dtype == torch.float64
    assert memory(6, 2).features.dtype == torch.float32
    assert memory(6, 2).double().features.dtype == torch.float64
    assert len(wide) == 6
    assert not list(wide.parameters())


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 6, 7, 12, 13, 29])
def test_a_queue_holds_what_a_deque_of_its_length_holds(batch):
    size, dim = 6, 3
    queue = FeatureQueue(size, dim).double()
    held = deque(queue.features.tolist(), maxlen=size)
    for seed in range(9):
        new = features(batch, dim, seed, torch.float64)
        queue.push(new)
        held.extend(unit(row) for row in new.tolist())
        torch.testing.assert_close(sorted_rows(queue.features), sorted_rows(held), rtol=1e-14, atol=1e-15)


def test_batches_of_changing_size_go_through_a_queue_in_turn():
    queue = FeatureQueue(5, 2).double()
    held = deque(queue.features.tolist(), maxlen=5)
    for seed, batch in enumerate([2, 5, 0, 1, 11, 3, 4, 10, 2]):
        new = features(batch, 2, seed, torch.float64)
        queue.push(new)
        held.extend(unit(row) for row in new.tolist())
        torch.testing.assert_close(sorted_rows(queue.features), sorted_rows(held), rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9, 1.0])
def test_a_bank_holds_what_a_table_of_moving_averages_holds(momentum):
    bank = MemoryBank(7, 3, momentum).double()
    table = dict(enumerate(bank.features.tolist()))
    for seed in range(12):
        index = torch.randperm(7, generator=torch.Generator().manual_seed(seed))[:4]
        new = features(4, 3, seed, torch.float64)
        bank.update(index, new)
        for image, row in zip(index.tolist(), new.tolist(), strict=True):
            pairs = zip(table[image], unit(row), strict=True)
            table[image] = unit([momentum * old + (1 - momentum) * value for old, value in pairs])
        expected = torch.tensor([table[image] for image in range(7)], dtype=torch.float64)
        torch.testing.assert_close(bank.features, expected, rtol=1e-13, atol=1e-14)


def test_images_that_are_not_updated_keep_every_bit():
    bank = MemoryBank(7, 3)
    before = bank.features.clone()
    bank.update(torch.tensor([5, 0]), features(2))
    kept = torch.tensor([1, 2, 3, 4, 6])
    assert torch.equal(bank.features[kept], before[kept])
    assert not torch.equal(bank.features[[0, 5]], before[[0, 5]])


def push(memory, new):
    if isinstance(memory, MemoryBank):
        memory.update(torch.arange(len(new)), new)
    else:
        memory.push(new)


@pytest.mark.parametrize("memory", [FeatureQueue(4, 3), MemoryBank(4, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_vectors_have_length_one_and_no_history_whatever_comes(memory, dtype):
    memory = copy.deepcopy(memory)
    place = memory.features.data_ptr()
    new = features(3, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        push(memory, new * 2)
    assert memory.features.dtype == torch.float32
    assert memory.features.data_ptr() == place
    torch.testing.assert_close(memory.features.norm(dim=1), torch.ones(4))
    assert not memory.features.requires_grad
    assert memory.features.grad_fn is None
    expected = torch.tensor([unit(row) for row in (new * 2).tolist()])
    if isinstance(memory, FeatureQueue):
        torch.testing.assert_close(memory.features[:3], expected)


@pytest.mark.parametrize("memory", [FeatureQueue, MemoryBank])
def test_a_memory_that_is_saved_and_loaded_goes_on_alike(memory):
    one, other = memory(5, 3), memory(5, 3)
    push(one, features(3))
    other.load_state_dict({name: value.clone() for name, value in one.state_dict().items()})
    for seed in (1, 2):
        push(one, features(4, seed=seed))
        push(other, features(4, seed=seed))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    assert list(one.state_dict()) == (["features", "position"] if memory is FeatureQueue else ["features"])


def test_a_bank_whose_size_is_not_known_yet_is_filled_later():
    bank = MemoryBank(0, 3).double()
    assert len(bank) == 0
    bank.allocate(6)
    torch.testing.assert_close(bank.features, MemoryBank(6, 3).features.double())
    assert bank.features.dtype == torch.float64
    assert bank.state_dict()["features"].shape == (6, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FeatureQueue(0, 3), "0 features"),
        (lambda: FeatureQueue(-1, 3), "FeatureQueue of -1 vectors of length 3"),
        (lambda: FeatureQueue(3, 0), "FeatureQueue of 3 vectors of length 0"),
        (lambda: MemoryBank(-2, 3), "MemoryBank of -2 vectors of length 3"),
        (lambda: MemoryBank(3, 3, -0.1), "momentum is -0.1"),
        (lambda: MemoryBank(3, 3, 1.1), "momentum is 1.1"),
        (lambda: MemoryBank(3, 3, math.nan), "momentum is nan"),
    ],
)
def test_numbers_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
