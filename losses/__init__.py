"""Losses: tensors in, scalar out. No Lightning, no process groups, no logging."""

from losses.ntxent import NTXent

__all__ = ["NTXent"]
