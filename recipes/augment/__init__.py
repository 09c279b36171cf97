"""Random views of images: stateless, a whole batch at a time, on the device of the batch."""

from recipes.augment.base import Views
from recipes.augment.colour import ColorJitter, Colour, Grayscale, Intensity
from recipes.augment.compose import Compose
from recipes.augment.erasing import RandomErasing
from recipes.augment.filters import GaussianBlur, Solarize
from recipes.augment.geometry import Geometry, HorizontalFlip, RandomAffine, RandomResizedCrop
from recipes.augment.keys import Key, integers, permutation, uniform
from recipes.augment.mix import Mix, partners
from recipes.augment.normalize import Normalize
from recipes.augment.rand_augment import RandAugment
from recipes.augment.views import (
    BYOLViews,
    DeiTViews,
    HandwritingViews,
    InstanceDiscriminationViews,
    MoCoV2Views,
    SimCLRViews,
    SupervisedViews,
)

__all__ = [
    "BYOLViews",
    "ColorJitter",
    "Colour",
    "Compose",
    "DeiTViews",
    "GaussianBlur",
    "Geometry",
    "Grayscale",
    "HandwritingViews",
    "HorizontalFlip",
    "InstanceDiscriminationViews",
    "Intensity",
    "Key",
    "Mix",
    "MoCoV2Views",
    "Normalize",
    "RandAugment",
    "RandomAffine",
    "RandomErasing",
    "RandomResizedCrop",
    "SimCLRViews",
    "Solarize",
    "SupervisedViews",
    "Views",
    "integers",
    "partners",
    "permutation",
    "uniform",
]
