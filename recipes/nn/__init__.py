"""Networks: encoders, heads, and loading their weights."""

from recipes.nn.convnet import ConvNet
from recipes.nn.detached import detached
from recipes.nn.encoder import Encoder
from recipes.nn.evaluating import evaluating
from recipes.nn.fisher import diagonal_fisher
from recipes.nn.heads import projection_head
from recipes.nn.memory import FeatureQueue, Memory, MemoryBank
from recipes.nn.micro_batch import in_micro_batches, sees_the_batch
from recipes.nn.mlp import MLP
from recipes.nn.momentum import MomentumCopy, check_momentum, cosine_momentum
from recipes.nn.multi_head import MultiHead
from recipes.nn.norm import (
    CrossDeviceBatchNorm,
    average_running_statistics,
    has_local_batch_norm,
    split_batch_norm,
)
from recipes.nn.quadratic_penalty import QuadraticPenalty
from recipes.nn.replay_buffer import Policy, ReplayBuffer
from recipes.nn.replicated import Replicated, TensorList
from recipes.nn.resnet import ResNet
from recipes.nn.snapshot import Snapshot
from recipes.nn.spread import feature_std
from recipes.nn.stages import Stage, stage_features, stage_of_state, stages
from recipes.nn.timm_encoder import TimmEncoder
from recipes.nn.torchvision_encoder import TorchvisionEncoder
from recipes.nn.vit import DistilledViT, ViT
from recipes.nn.weights import load_mismatch, load_weights

__all__ = [
    "ConvNet",
    "CrossDeviceBatchNorm",
    "DistilledViT",
    "Encoder",
    "FeatureQueue",
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
]
