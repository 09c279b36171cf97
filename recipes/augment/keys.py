"""Stateless random numbers: each number is a function of a key, not of earlier draws."""

from typing import NamedTuple

import torch
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # the increments and multipliers of splitmix64 (Steele et al., 2014, Figure 17)
_MIX1 = 0xBF58476D1CE4E5B9
_MIX2 = 0x94D049BB133111EB
_SAMPLE = 0xD1342543DE82EF95  # a second increment: a multiplier of Steele and Vigna, 2022


class Key(NamedTuple):
    """Identifies random numbers: the same key gives the same numbers, on any device and in any batch.

    Attributes:
        seed: of the run.
        epoch: of the training, 0-based.
        index: int64 [B], which sample of the dataset each row of the batch is.
        view: which of the views of that sample, 0-based.
    """

    seed: int
    epoch: int
    index: Tensor  # type: ignore[assignment]  # a field, in place of tuple.index
    view: int = 0

    def fold_in(self, number: int) -> "Key":
        """A key whose numbers are independent of this one's, for the part ``number`` of an augmentation."""
        return self._replace(seed=_mix_int(self.seed ^ _mix_int(number + 1)))


def uniform(key: Key, n: int) -> Tensor:
    """Draws n uniform random numbers for every sample of a key.

    The numbers are a hash (splitmix64) of (seed, epoch, index, view, column): nothing is stored and nothing advances.

    Args:
        key: for what the numbers are drawn.
        n: how many numbers a sample gets.

    Returns:
        float32 [B, n] in [0, 1), multiples of 2^-24, on the device of ``key.index``.
    """
    run = _of_batch(key)
    sample = key.index.to(torch.int64) * _signed(_SAMPLE) + _signed(run)  # [B]; int64 wraps around
    column = torch.arange(1, n + 1, device=sample.device) * _signed(_GOLDEN)  # [n]
    x = sample[:, None] + column
    x.bitwise_xor_(_shift(x, 30)).mul_(_signed(_MIX1))
    x.bitwise_xor_(_shift(x, 27)).mul_(_signed(_MIX2))
    return _shift(x, 40).to(torch.float32).mul_(2.0**-24)  # splitmix64's last step leaves these upper bits alone


def normal(key: Key, n: int) -> Tensor:
    """Draws n standard normal random numbers for every sample of a key, from as many uniform ones.

    Args:
        key: for what the numbers are drawn.
        n: how many numbers a sample gets.

    Returns:
        Float [B, n] in [-5.5, 5.5], on the device of ``key.index``.
    """
    dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)
    return torch.special.ndtri(uniform(key, n).to(dtype).clamp(min=2**-25))  # 0 would be -inf


def integers(key: Key, count: int, below: int) -> Tensor:
    """Draws integers for the batch of a key as a whole.

    Args:
        key: for what the numbers are drawn.
        count: how many.
        below: the smallest number that is none of them, at most 2^48; far smaller, all are as likely as each other.

    Returns:
        int64 [count] in [0, below), on the device of ``key.index``; a number may come twice.
    """
    each = -(-count // len(key.index))
    bits = (uniform(key, 2 * each) * 2**24).long().flatten()  # two of 24 random bits make one of 48
    return ((bits[0::2] << 24) + bits[1::2])[:count] % below


def permutation(key: Key, count: int) -> Tensor:
    """Draws an order for the batch of a key as a whole, whose indices do not matter.

    Args:
        key: for what it is drawn.
        count: of how many things.

    Returns:
        int64 [count], a permutation of 0, ..., count - 1, on the CPU.
    """
    return torch.randperm(count, generator=torch.Generator().manual_seed(_signed(_of_batch(key))))


def _of_batch(key: Key) -> int:
    """64 random bits that all samples of a key share."""
    return _mix_int(_mix_int(_mix_int(key.seed) ^ key.epoch) ^ key.view)


def _mix_int(x: int) -> int:
    x = (x + _GOLDEN) & _WORD
    x = ((x ^ (x >> 30)) * _MIX1) & _WORD
    x = ((x ^ (x >> 27)) * _MIX2) & _WORD
    return x ^ (x >> 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(x: int) -> int:
    x &= _WORD
    return x - (1 << 64) if x >> 63 else x
