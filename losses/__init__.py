"""Losses: tensors in, scalar out. No Lightning, no process groups, no logging."""

from losses.attention_transfer import AttentionTransfer
from losses.bootstrap import BootstrapLoss
from losses.decoupled import DecoupledSoftTarget
from losses.feature import FeatureLoss
from losses.hint import Hint
from losses.infonce import InfoNCE
from losses.labelled import labelled_cross_entropy
from losses.nce import NCE
from losses.ntxent import NTXent
from losses.relational import RelationalAngle, RelationalDistance
from losses.similarity_preserving import SimilarityPreserving
from losses.soft_target import SoftTarget
from losses.streaming import streamed_logsumexp, streamed_logsumexp_of_others
from losses.unit import unit

__all__ = [
    "NCE",
    "AttentionTransfer",
    "BootstrapLoss",
    "DecoupledSoftTarget",
    "FeatureLoss",
    "Hint",
    "InfoNCE",
    "NTXent",
    "RelationalAngle",
    "RelationalDistance",
    "SimilarityPreserving",
    "SoftTarget",
    "labelled_cross_entropy",
    "streamed_logsumexp",
    "streamed_logsumexp_of_others",
    "unit",
]
