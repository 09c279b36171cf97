"""Networks: encoders, heads, and loading their weights."""

from recipes.nn.copies import MomentumCopy, Snapshot, check_momentum, cosine_momentum
from recipes.nn.encoders.base import Encoder
from recipes.nn.encoders.convnet import ConvNet
from recipes.nn.encoders.mlp import MLP
from recipes.nn.encoders.resnet import ResNet
from recipes.nn.encoders.stages import Stage, stage_features, stage_of_state, stages, watched_stages
from recipes.nn.encoders.timm import TimmEncoder
from recipes.nn.encoders.torchvision import TorchvisionEncoder
from recipes.nn.encoders.vit import DistilledViT, ViT
from recipes.nn.encoders.weights import load_mismatch, load_weights
from recipes.nn.fisher import diagonal_fisher
from recipes.nn.frozen_stages import FrozenStages, detached
from recipes.nn.heads import MultiHead, projection_head
from recipes.nn.memory import FeatureQueue, Memory, MemoryBank
from recipes.nn.norm import (
    CrossDeviceBatchNorm,
    average_running_statistics,
    has_local_batch_norm,
    split_batch_norm,
)
from recipes.nn.passes import evaluating, in_micro_batches, sees_the_batch
from recipes.nn.precision import AtLeastFloat32
from recipes.nn.quadratic_penalty import QuadraticPenalty
from recipes.nn.replay_buffer import Policy, ReplayBuffer
from recipes.nn.replicated import Replicated, TensorList
from recipes.nn.shuffle import Shuffle
from recipes.nn.spread import feature_std

__all__ = [
    "AtLeastFloat32",
    "ConvNet",
    "CrossDeviceBatchNorm",
    "DistilledViT",
    "Encoder",
    "FeatureQueue",
    "FrozenStages",
    "MLP",
    "Memory",
    "MemoryBank",
    "MomentumCopy",
    "MultiHead",
    "Policy",
    "QuadraticPenalty",
    "ReplayBuffer",
    "Replicated",
    "ResNet",
    "Shuffle",
    "Snapshot",
    "Stage",
    "TensorList",
    "TimmEncoder",
    "TorchvisionEncoder",
    "ViT",
    "average_running_statistics",
    "check_momentum",
    "cosine_momentum",
    "detached",
    "diagonal_fisher",
    "evaluating",
    "feature_std",
    "has_local_batch_norm",
    "in_micro_batches",
    "load_mismatch",
    "load_weights",
    "projection_head",
    "sees_the_batch",
    "split_batch_norm",
    "stage_features",
    "stage_of_state",
    "stages",
    "watched_stages",
]
