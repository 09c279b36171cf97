from collections.abc import Sequence

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from datamodules import Batch, ImageDataModule, ImageDataset
from datamodules.base import is_labelled
from recipes.base.together import Together
from recipes.evaluation.features import Features, extract
from recipes.evaluation.svm import GRID, SVMFit, fit_svm
from recipes.nn import Encoder
from recipes.transfer.frozen import FrozenClassifier


class SVM(FrozenClassifier):
    """Transfer learning: linear support vector machines on the features of a frozen encoder.

    The SVMs are solved once, before training begins, from the features of all training images. C is chosen on the
    validation images. Several devices share the values of C. Training steps change nothing; one is taken, after which
    the checkpoint is saved and the run ends. The solution is in the linear layer ``head``. Its outputs are decision
    values, not logits, so their softmax has no meaning: ``predict`` gives a ``score`` [B, classes] instead of a
    ``probability``. Under ``fast_dev_run`` nothing is solved, because one batch of images may have one class only.

    If the features of all labelled training images take more than 1 GiB in float64 (65,536 images with the 2,048
    features of a ResNet-50), every n-th of these images is used, and a line says so.

    Goyal et al. (2019, arXiv:1905.01235) compare encoders by linear SVMs on features of several stages, with a C for
    each task.

    Args:
        grid: values of C to choose from, all > 0.
        Other arguments: see ``FrozenClassifier``.

    Attributes:
        solution: with the accuracy of every C; None before training.

    Raises:
        ValueError: if ``num_classes`` is out of range, the encoder has no such stage, or a value of ``grid`` is not
            positive; before training, if the labelled training images are of one class alone.
    """

    has_probabilities = False

    def __init__(
        self, encoder: Encoder, num_classes: int, stage: int | None = None, grid: Sequence[float] = GRID
    ) -> None:
        super().__init__(encoder, num_classes, stage, optimizer=torch.optim.SGD)  # not used, see configure_optimizers
        if not grid or not min(grid) > 0:
            raise ValueError(f"grid is {list(grid)}: give at least one value of C, all positive")
        self.grid = tuple(grid)
        self.solution: SVMFit | None = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Solves the support vector machines. Lightning wants an optimiser: its learning rate is 0."""
        if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._solve()
        return torch.optim.SGD(self.head.parameters(), lr=0.0)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A loss of 0, which moves nothing: without one, Lightning does not train on several devices.

        There is nothing left to learn, so the run ends after this step.
        """
        self.trainer.should_stop = True
        return 0 * (self.head.weight.sum() + self.head.bias.nan_to_num(neginf=0).sum())

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs ``val/accuracy``; returns the features [B, F]."""
        feature = self.feature(batch)
        self.measure(self.val_accuracy, self.logits(feature), batch.label)
        return feature

    @torch.no_grad()
    def _solve(self) -> None:
        data = self.datamodule
        if not isinstance(data, ImageDataModule):
            raise ValueError("SVM reads all training images before training: pass a DataModule of datamodules to fit")
        train = self._features(data, data.splits.train)
        val = self._features(data, data.splits.val) if is_labelled(data.splits.val) else None
        val_feature, val_label = (None, None) if val is None else (val.feature, val.label)
        self.solution = solution = fit_svm(
            train.feature,
            train.label,
            val_feature,
            val_label,
            self.head.out_features,
            self.grid,
            results=Together(self.trainer).results,
        )
        self.head.weight.copy_(solution.weight)
        self.head.bias.copy_(solution.bias)
        by = "validation images" if val is not None else "folds of the training images"
        shown = ", ".join(f"{c:g}: {100 * accuracy:.1f} %" for c, accuracy in solution.accuracies.items())
        chosen = f", by accuracy on {by} ({shown})" if shown else ""
        rank_zero_info(
            f"SVM: C = {solution.C:g}{chosen}" + (f"; solved on {solution.subset}" if solution.subset else "")
        )

    def _features(self, data: ImageDataModule, images: ImageDataset) -> Features:
        return extract({"svm": self}, data.in_order(images), self.trainer, self.head.weight.dtype)["svm"].to("cpu")
