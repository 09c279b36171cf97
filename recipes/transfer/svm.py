"""Linear support vector machines on frozen features."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from datamodules import Batch, ImageDataModule, ImageDataset
from recipes.evaluation.features import Features, extract
from recipes.nn import Encoder
from recipes.transfer.frozen import FrozenClassifier

GRID = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # our choice, for standardised features
_FOLDS = 5


class SVMFit(NamedTuple):
    """A solved support vector machine. ``feature @ weight.T + bias`` are the decision values of the classes.

    Attributes:
        weight: float64 [classes, F].
        bias: float64 [classes]; -inf for a class without training images, which is never predicted.
        C: the one that was chosen.
        accuracies: in [0, 1], by C: on the validation images, or the mean over the folds of the training images.
    """

    weight: Tensor
    bias: Tensor
    C: float
    accuracies: dict[float, float]


def fit_svm(
    feature: Tensor,
    label: Tensor,
    val_feature: Tensor | None,
    val_label: Tensor | None,
    num_classes: int,
    grid: Sequence[float] = GRID,
) -> SVMFit:
    """Solves linear support vector machines, one class against the rest, and chooses C by validation.

    Each class has weights w and a bias b that minimise ½ (||w||² + b²) + C Σ max(0, 1 - y (w·x + b))² over all training
    images, where x are features standardised over the training images and y is 1 for the images of the class and -1
    for the others: scikit-learn's ``LinearSVC``, of LIBLINEAR (Fan et al., 2008). The standardisation is then folded
    into w and b. Images without a label take no part.

    The C that classifies most validation images right is chosen, of equal ones the smallest. Without validation images
    it is the mean over five stratified folds of the training images, or as many as the smallest class has images; where
    a class has a single image there is nothing to choose by, and C is the one in the middle of ``grid``.

    Args:
        feature: float [N, F], of the training images.
        label: int64 [N], -1 where unlabelled.
        val_feature: float [M, F], of the validation images, or None.
        val_label: int64 [M], or None.
        num_classes: how many classes there are, whether or not they occur.
        grid: values of C to choose from, all positive.

    Returns:
        The solution, on the CPU.

    Raises:
        ValueError: if ``grid`` is empty or has a value that is not positive, features are not finite, or the labelled
            training images are of fewer than two classes.
    """
    grid = sorted(set(grid))
    if not grid or not 0 < grid[0] <= grid[-1] < float("inf"):
        raise ValueError(f"grid is {list(grid)}: give at least one value of C, all positive")
    x, y = _labelled(feature, label)
    present = y.unique()
    if len(present) < 2:
        raise ValueError(
            f"the labelled training images are of {len(present)} class{'es' * (len(present) != 1)}: a support vector "
            "machine tells at least two apart"
        )
    if not x.isfinite().all():
        raise ValueError("some features are not finite: look at the encoder's weights and at the images")
    std, mean = torch.std_mean(x, dim=0, correction=0)
    std = torch.where(std > 1e-6 * mean.abs(), std, 1)  # constant features stay constant
    x = (x - mean) / std
    folds: list[tuple[Tensor, Tensor]] = []
    held_out = None
    if val_feature is not None and val_label is not None and (val_label >= 0).any():
        val_x, val_y = _labelled(val_feature, val_label)
        held_out = (val_x - mean) / std, val_y
    elif len(grid) > 1:
        folds = _folds(y)

    solutions, accuracies = {}, {}
    for c in grid:
        if held_out is not None:
            solutions[c] = _solve(x, y, c, num_classes)
            accuracies[c] = _accuracy(*solutions[c], *held_out)
        elif folds:
            each = [_accuracy(*_solve(x[fit], y[fit], c, num_classes), x[left], y[left]) for fit, left in folds]
            accuracies[c] = sum(each) / len(each)
    best = max(accuracies, key=lambda c: (accuracies[c], -c)) if accuracies else grid[len(grid) // 2]
    weight, bias = solutions.get(best) or _solve(x, y, best, num_classes)
    weight = weight / std
    return SVMFit(weight, bias - weight @ mean, best, accuracies)


class SVM(FrozenClassifier):
    """Transfer learning: linear support vector machines on the features of a frozen encoder.

    They are solved once, before training begins, from the features of all training images; C is chosen on the
    validation images. No step changes anything: there has to be one, after which the checkpoint is saved
    (``trainer.max_epochs: 1``, ``trainer.limit_train_batches: 1``). The solution is in the linear layer ``head``, whose
    outputs are decision values, not logits: their softmax says nothing, so that ``predict`` gives a ``score``
    [B, classes] and no ``probability``. Under ``fast_dev_run``, where one batch of images may be of one class, nothing
    is solved.

    Linear classifiers on features of several stages, with a C for each task, are those that Goyal et al. (2019,
    arXiv:1905.01235) compare encoders by.

    Args:
        encoder: maps images [B, C, H, W] to features [B, F]; its weights stay as they are.
        num_classes: how many classes there are, > 1. The ``recipes`` command takes it from the DataModule.
        stage: of the encoder (``recipes.nn.stages``), from 0; the mean of its output over all places is what the head
            reads. Null takes the features of the encoder.
        grid: values of C to choose from, all positive.

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
        """A loss of 0, which moves nothing: without one, Lightning does not train on several devices."""
        return 0 * (self.head.weight.sum() + self.head.bias.nan_to_num(neginf=0).sum())

    def validation_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Logs ``val/accuracy``; returns the features [B, F]."""
        feature = self.feature(batch)
        self.val_accuracy(self.logits(feature), batch.label)
        self.log("val/accuracy", self.val_accuracy)
        return feature

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """Returns features [B, F], decision values [B, classes] and indices [B]."""
        feature = self.feature(batch)
        return {"index": batch.index, "feature": feature, "score": self.logits(feature)}

    @torch.no_grad()
    def _solve(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, ImageDataModule):
            raise ValueError("SVM reads all training images before training: pass a DataModule of datamodules to fit")
        train = self._features(data, data.splits.train)
        val = None if data.splits.val is None else self._features(data, data.splits.val)
        found: SVMFit | ValueError | None = None
        if self.trainer.is_global_zero:
            val_feature, val_label = (None, None) if val is None else (val.feature, val.label)
            try:
                found = fit_svm(train.feature, train.label, val_feature, val_label, self.head.out_features, self.grid)
            except ValueError as error:  # the other devices wait for what comes
                found = error
        found = self.trainer.strategy.broadcast(found)
        if not isinstance(found, SVMFit):
            raise ValueError(str(found))
        self.solution = solution = found
        self.head.weight.copy_(solution.weight)
        self.head.bias.copy_(solution.bias)
        by = "validation images" if val is not None else "folds of the training images"
        shown = ", ".join(f"{c:g}: {100 * accuracy:.1f} %" for c, accuracy in solution.accuracies.items())
        rank_zero_info(f"SVM: C = {solution.C:g}" + (f", by accuracy on {by} ({shown})" if shown else ""))

    def _features(self, data: ImageDataModule, images: ImageDataset) -> Features:
        return extract({"svm": self}, data.in_order(images), self.trainer, self.head.weight.dtype)["svm"].to("cpu")


def _labelled(feature: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    rows = (label >= 0).nonzero().flatten()
    return feature[rows].cpu().double(), label[rows].cpu()


def _folds(y: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Rows to fit on and rows left out, of each fold; none where a class has one image."""
    from sklearn.model_selection import StratifiedKFold

    folds = min(_FOLDS, int(y.unique(return_counts=True)[1].min()))
    if folds < 2:
        return []
    split = StratifiedKFold(folds, shuffle=True, random_state=0).split(y.numpy(), y.numpy())
    return [(torch.from_numpy(fit), torch.from_numpy(left)) for fit, left in split]


def _solve(x: Tensor, y: Tensor, c: float, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weights [classes, F] and biases [classes] for standardised features."""
    from sklearn.svm import LinearSVC

    # Newton's method on the primal problem, for fewer images than features too: the coordinate descent on the dual
    # that scikit-learn would choose there takes 10 to 100 times as long for C of 1 and more, and stops before the end
    machine = LinearSVC(C=c, dual=False).fit(x.numpy(), y.numpy())
    found, offset = torch.from_numpy(machine.coef_), torch.from_numpy(machine.intercept_)
    if len(found) == 1:  # two classes: the second against the first
        found, offset = torch.cat([-found, found]), torch.cat([-offset, offset])
    present = torch.from_numpy(machine.classes_)
    weight = x.new_zeros(num_classes, x.shape[1]).index_copy(0, present, found)
    return weight, x.new_full((num_classes,), -torch.inf).index_copy(0, present, offset)


def _accuracy(weight: Tensor, bias: Tensor, x: Tensor, y: Tensor) -> float:
    return ((x @ weight.T + bias).argmax(1) == y).double().mean().item()
