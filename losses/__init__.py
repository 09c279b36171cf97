"""Losses: tensors in, scalar out. No Lightning, no process groups, no logging."""

from losses.ntxent import NTXent
from losses.streaming import streamed_logsumexp, streamed_logsumexp_of_others

__all__ = ["NTXent", "streamed_logsumexp", "streamed_logsumexp_of_others"]
