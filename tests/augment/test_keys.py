import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from recipes.augment import Key, integers, uniform

WORD = 2**64


def splitmix64(state):
    """Steele et al. (2014), Figure 17, after the increment."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % WORD
    return state ^ (state >> 31)


def mix(x):
    return splitmix64((x + 0x9E3779B97F4A7C15) % WORD)


def key(n=10_000, seed=0, epoch=0, view=0):
    return Key(seed, epoch, torch.arange(n), view)


@pytest.mark.parametrize(
    ("seed", "epoch", "index", "view"), [(0, 0, 0, 0), (42, 3, 49_999, 1), (2**32 - 1, 9, 2**40, 5)]
)
def test_numbers_are_the_upper_bits_of_splitmix64(seed, epoch, index, view):
    run = mix(mix(mix(seed) ^ epoch) ^ view)
    expected = [
        (splitmix64((run + index * 0xD1342543DE82EF95 + column * 0x9E3779B97F4A7C15) % WORD) >> 40) / 2**24
        for column in range(1, 5)
    ]
    assert uniform(Key(seed, epoch, torch.tensor([index]), view), 4).tolist() == [expected]


def test_a_sample_gets_equal_numbers_in_every_batch_and_order():
    whole = uniform(key(101), 7)
    order = torch.randperm(101)
    for size in (1, 2, 13, 100):
        parts = [uniform(Key(0, 0, part), 7) for part in order.split(size)]
        assert torch.equal(torch.cat(parts), whole[order])


def test_more_columns_leave_the_first_as_they_are():
    assert torch.equal(uniform(key(50), 9)[:, :4], uniform(key(50), 4))


def test_numbers_lie_in_0_1_and_are_float32_under_every_default_type():
    torch.set_default_dtype(torch.float64)
    try:
        u = uniform(key(100_000), 4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert u.dtype == torch.float32
    assert u.min() >= 0
    assert u.max() < 1


def test_numbers_are_uniform():
    u = uniform(key(), 6).double().numpy()
    for column in u.T:
        assert stats.kstest(column, "uniform").pvalue > 0.001
    counts = np.histogram(u, bins=256, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > 0.001
    low_bits = (u * 2**24).astype(int) % 256
    assert stats.chisquare(np.bincount(low_bits.ravel(), minlength=256)).pvalue > 0.001


def test_columns_samples_views_epochs_seeds_and_parts_are_independent():
    base = key()
    streams = [uniform(base, 3)[:, i] for i in range(3)]
    streams += [uniform(Key(0, 0, base.index + shift), 1)[:, 0] for shift in (1, 2, 10_000)]
    streams += [uniform(base._replace(view=v), 1)[:, 0] for v in (1, 2)]
    streams += [uniform(base._replace(epoch=e), 1)[:, 0] for e in (1, 2)]
    streams += [uniform(base._replace(seed=s), 1)[:, 0] for s in (1, 2)]
    streams += [uniform(base.fold_in(i), 1)[:, 0] for i in (0, 1, 2)]
    streams += [uniform(base.fold_in(1).fold_in(0), 1)[:, 0], uniform(base.fold_in(0).fold_in(1), 1)[:, 0]]
    streams = [stream.double().numpy() for stream in streams]
    pairs = len(streams) * (len(streams) - 1) // 2
    for a, b in itertools.combinations(streams, 2):
        assert stats.pearsonr(a, b).pvalue > 0.01 / pairs
        table = np.histogram2d(a, b, bins=8, range=[[0, 1], [0, 1]])[0]
        assert stats.chisquare(table.ravel()).pvalue > 0.01 / pairs


def test_no_two_of_a_million_draws_share_their_48_bits():
    keys = [key(10_000, seed, epoch, view) for seed in (0, 1) for epoch in (0, 1, 2) for view in (0, 1)]
    keys += [k.fold_in(i) for k in keys[:8] for i in range(10)]
    u = torch.cat([uniform(k, 2) for k in keys]).double()
    words = (u[:, 0] * 2**48 + u[:, 1] * 2**24).long()
    # by chance, 920,000 draws of 48 bits share about 2^39.6 / 2^49 = 0.0015
    assert len(words.unique()) == len(words)


def test_fold_in_keeps_what_the_numbers_are_for():
    k = key(5, seed=3, epoch=2, view=1)
    folded = k.fold_in(4)
    assert (folded.epoch, folded.view) == (2, 1)
    assert folded.index is k.index
    assert folded.seed != k.seed
    assert k.fold_in(4).seed == folded.seed


@pytest.mark.parametrize(("count", "below"), [(7, 5), (64, 1000), (20_000, 12)])
def test_integers_are_below_their_bound_each_as_likely_and_other_for_another_batch(count, below):
    key = Key(3, 1, torch.arange(64))
    drawn = integers(key, count, below)
    assert drawn.shape == (count,)
    assert drawn.dtype == torch.int64
    assert drawn.min() >= 0
    assert drawn.max() < below
    assert torch.equal(drawn, integers(key, count, below))
    assert not torch.equal(drawn, integers(Key(3, 2, torch.arange(64)), count, below))
    if count > 100 * below:
        assert stats.chisquare(torch.bincount(drawn, minlength=below).numpy()).pvalue > 1e-3
