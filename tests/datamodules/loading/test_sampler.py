import random

import pytest
import torch
from torch.utils.data import DistributedSampler

from datamodules import GlobalBatchSampler


def batches(sampler, size):
    indices = list(sampler)
    return [indices[i : i + size] for i in range(0, len(indices), size)]


def sampler(count=23, batch_size=8, devices=1, rank=0, training=True, epoch=0):
    made = GlobalBatchSampler(torch.arange(count), batch_size, devices, rank, training)
    made.set_epoch(epoch)
    return made


def test_it_is_a_distributed_sampler_so_that_lightning_leaves_it_alone():
    assert isinstance(sampler(), DistributedSampler)


@pytest.mark.parametrize("devices", [2, 4, 8])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("count", [16, 23, 25, 31])
def test_the_ranks_batches_in_order_are_the_single_process_batches(devices, training, count):
    single = batches(sampler(count, training=training, epoch=3), 8)
    ranks = [
        batches(sampler(count, devices=devices, rank=rank, training=training, epoch=3), 8 // devices)
        for rank in range(devices)
    ]
    for k, batch in enumerate(single):
        assert [i for rank in ranks for i in (rank[k] if k < len(rank) else [])] == batch
    assert max(map(len, ranks)) == len(single)


def test_a_training_epoch_is_a_permutation_without_the_incomplete_last_batch():
    indices = list(sampler(23, 8))
    assert len(indices) == len(sampler(23, 8)) == 16
    assert len(set(indices)) == 16
    assert indices != sorted(indices)


def test_all_images_are_left_out_sometimes():
    seen = {i for epoch in range(60) for i in sampler(23, 8, epoch=epoch)}
    assert seen == set(range(23))


def test_the_order_depends_on_the_seed_and_the_epoch_alone(monkeypatch):
    orders = {}
    for seed in (0, 1):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        for epoch in (0, 1):
            random.seed(seed + epoch)
            torch.manual_seed(epoch)
            orders[seed, epoch] = tuple(sampler(epoch=epoch))
            torch.rand(epoch + 1)
            assert tuple(sampler(epoch=epoch)) == orders[seed, epoch]
    assert len(set(orders.values())) == 4  # also (0, 1) and (1, 0), which the sum of seed and epoch would confuse


def test_an_evaluation_goes_once_over_everything_in_order():
    for devices in (1, 2, 4):
        ranks = [list(sampler(23, 8, devices, rank, training=False)) for rank in range(devices)]
        assert sorted(i for rank in ranks for i in rank) == list(range(23))
        assert all(rank == sorted(rank) for rank in ranks)
        assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


@pytest.mark.parametrize(("images", "devices"), [(1, 2), (2, 4), (9, 4), (1, 8)])
def test_a_device_without_an_image_of_an_evaluation_gets_a_filler(images, devices):
    ranks = [list(made := sampler(images, 8, devices, rank, training=False)) for rank in range(devices)]
    assert sorted(i for rank in ranks for i in rank if i >= 0) == list(range(images))
    assert all(rank and (rank == [-1] or min(rank) >= 0) for rank in ranks)
    assert len(made) == len(ranks[-1])
    assert list(sampler(0, 8, 2, 0, training=False)) == []


def test_skipping_leaves_out_batches_of_every_rank_and_not_of_the_length():
    for rank in range(2):
        whole, skipping = sampler(devices=2, rank=rank), sampler(devices=2, rank=rank)
        skipping.skip = 1
        assert list(skipping) == list(whole)[4:]
        assert len(skipping) == len(whole)


def test_a_subset_is_sampled_from_its_positions():
    made = GlobalBatchSampler(torch.tensor([3, 5, 8]), 2, 1, 0, training=False)
    assert list(made) == [3, 5, 8]


@pytest.mark.parametrize(
    ("batch_size", "devices", "advice"), [(10, 4, "use 8 or 12"), (2, 4, "use 4"), (7, 2, "use 6 or 8")]
)
def test_a_batch_that_does_not_divide_over_the_devices_is_an_error_with_both_numbers(batch_size, devices, advice):
    with pytest.raises(ValueError, match=f"batch_size is {batch_size} .* {devices} devices: {advice}$"):
        sampler(100, batch_size, devices)
