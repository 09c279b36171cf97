"""Images for any recipe."""

from datamodules.base import ImageDataModule, Splits
from datamodules.batch import Batch
from datamodules.loading.dataset import ImageDataset, ImageFiles, ImageSelection, ImagesInMemory
from datamodules.loading.loader import ResumableLoader
from datamodules.loading.sampler import GlobalBatchSampler, SemiSupervisedSampler
from datamodules.sources.digits import Digits
from datamodules.sources.folder import ImageFolder
from datamodules.sources.standard import CIFAR10, CIFAR100, KMNIST, MNIST, STL10, SVHN, FashionMNIST
from datamodules.wrappers.semi_supervised import SemiSupervised
from datamodules.wrappers.subset import Subset
from datamodules.wrappers.task_images import TaskImages, TaskSplits
from datamodules.wrappers.task_sequence import TaskSequence
from datamodules.wrappers.tasks import (
    Scenario as Scenario,  # no class, and so not below, where the command looks for data
)
from datamodules.wrappers.tasks import TaskBatch, Tasks

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "KMNIST",
    "MNIST",
    "STL10",
    "SVHN",
    "Batch",
    "Digits",
    "FashionMNIST",
    "GlobalBatchSampler",
    "ImageDataModule",
    "ImageDataset",
    "ImageFiles",
    "ImageFolder",
    "ImageSelection",
    "ImagesInMemory",
    "ResumableLoader",
    "SemiSupervised",
    "SemiSupervisedSampler",
    "Splits",
    "Subset",
    "TaskBatch",
    "TaskImages",
    "TaskSequence",
    "TaskSplits",
    "Tasks",
]
