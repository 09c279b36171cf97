"""Losses: tensors in, scalar out. No Lightning, no process groups, no logging."""

from losses.bootstrap import BootstrapLoss
from losses.infonce import InfoNCE
from losses.labelled import labelled_cross_entropy
from losses.nce import NCE
from losses.ntxent import NTXent
from losses.streaming import streamed_logsumexp, streamed_logsumexp_of_others
from losses.unit import unit

__all__ = [
    "NCE",
    "BootstrapLoss",
    "InfoNCE",
    "NTXent",
    "labelled_cross_entropy",
    "streamed_logsumexp",
    "streamed_logsumexp_of_others",
    "unit",
]
