"""Images for any recipe."""

from datamodules.base import ImageDataModule, Splits
from datamodules.batch import Batch
from datamodules.dataset import ImageDataset, ImageFiles, ImageSelection, ImagesInMemory
from datamodules.digits import Digits
from datamodules.folder import ImageFolder
from datamodules.loader import ResumableLoader
from datamodules.sampler import GlobalBatchSampler, SemiSupervisedSampler
from datamodules.semi_supervised import SemiSupervised
from datamodules.standard import CIFAR10, CIFAR100, KMNIST, MNIST, STL10, SVHN, FashionMNIST
from datamodules.subset import Subset
from datamodules.task_sequence import TaskImages, TaskSequence, TaskSplits
from datamodules.tasks import Scenario as Scenario  # no class, and so not below, where the command looks for data
from datamodules.tasks import TaskBatch, Tasks

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
