"""Networks: encoders, heads, and loading their weights."""

from recipes.nn.convnet import ConvNet
from recipes.nn.encoder import Encoder
from recipes.nn.evaluating import evaluating
from recipes.nn.heads import projection_head
from recipes.nn.micro_batch import in_micro_batches, sees_the_batch
from recipes.nn.mlp import MLP
from recipes.nn.norm import CrossDeviceBatchNorm, has_local_batch_norm
from recipes.nn.resnet import ResNet
from recipes.nn.timm_encoder import TimmEncoder
from recipes.nn.torchvision_encoder import TorchvisionEncoder
from recipes.nn.vit import ViT
from recipes.nn.weights import load_mismatch, load_weights

__all__ = [
    "ConvNet",
    "CrossDeviceBatchNorm",
    "Encoder",
    "MLP",
    "ResNet",
    "TimmEncoder",
    "TorchvisionEncoder",
    "ViT",
    "evaluating",
    "has_local_batch_norm",
    "in_micro_batches",
    "load_mismatch",
    "load_weights",
    "projection_head",
    "sees_the_batch",
]
