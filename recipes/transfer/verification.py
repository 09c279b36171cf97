"""Whether advice holds: every strategy is carried out for a while, and measured."""

import copy
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from datamodules import ImageDataModule
from recipes.augment import Views
from recipes.evaluation import StageReader, accuracy, fit_svm, linear_probe, quiet_trainer
from recipes.evaluation.features import Features, extract
from recipes.nn import Encoder
from recipes.optim import WarmupCosine
from recipes.transfer.advisor import (
    FEWEST_EPOCHS,
    FEWEST_STEPS,
    STRATEGIES,
    fitting_batch_size,
    training_labels,
)
from recipes.transfer.fine_tune import FineTune

POINT = 0.01  # of accuracy: the advice held if no strategy is better by more on the validation images


def verify(
    encoder: Encoder,
    data: ImageDataModule,
    strategies: Sequence[str] = tuple(STRATEGIES),
    steps: int | None = None,
    seed: int = 0,
    stage: int | None = None,
    views: Views | None = None,
    options: dict[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """Carries out strategies, each from the same encoder, and measures what comes of them.

    Features of a frozen encoder are computed once. A linear layer on them is fitted by L-BFGS (``linear_probe``), an
    SVM with its C chosen on the validation images; the others are trained by ``FineTune``.

    Args:
        encoder: with the weights to start from. It is left as it is.
        data: needs validation images; its training loader gets the batch size of ``fitting_batch_size`` meanwhile.
        strategies: which of ``STRATEGIES``.
        steps: of the optimiser. None takes 500: brief, but what Big Transfer trains on small data.
        seed: of the new layers and of all that is random in training.
        stage: whose features the SVM takes, by number; None takes those of the encoder.
        views: of ``FineTune``; None takes its own, a random crop and a flip.
        options: of the Trainer, such as ``{"accelerator": "cpu"}``.

    Returns:
        For each strategy ``val`` and ``test``, accuracies in [0, 1] (``test`` is None where there are no test images),
        ``minutes``, and ``steps`` of the optimiser, 0 where there are none.

    Raises:
        ValueError: if a strategy is unknown, there are no labelled validation images, or ``measure`` would refuse data
            and encoder.
    """
    for strategy in strategies:
        if strategy not in STRATEGIES:
            raise ValueError(f"there is no strategy {strategy!r}: there are {', '.join(STRATEGIES)}")
    training_labels(data)
    check_validation(data)
    results: dict[str, dict[str, Any]] = {}
    frozen: _Frozen | None = None
    for strategy in strategies:
        start, extra = time.perf_counter(), 0.0
        with _seeded(seed):
            if strategy in ("feature-extraction", "svm"):
                frozen = frozen or _Frozen(copy.deepcopy(encoder), data, quiet_trainer(**(options or {})))
                extra = frozen.seconds if start > frozen.made else 0.0  # features that another strategy has computed
                results[strategy] = frozen.linear() if strategy == "feature-extraction" else frozen.svm(stage)
            else:
                results[strategy] = _trained(strategy, encoder, data, steps or FEWEST_STEPS, views, options or {})
        results[strategy]["minutes"] = (time.perf_counter() - start + extra) / 60
    return results


def check_validation(data: ImageDataModule) -> None:
    """Checks that strategies can be compared.

    Raises:
        ValueError: if there are no labelled validation images.
    """
    val = data.splits.val
    if val is None or not bool((val.label >= 0).any()):
        raise ValueError(
            "strategies are compared on validation images, and there are none with labels: keep some of the images for "
            "validation (val_fraction of ImageFolder)"
        )


def held(results: dict[str, dict[str, Any]], strategy: str) -> bool:
    """Whether no strategy is better than this one by more than one point on the validation images."""
    return max(result["val"] for result in results.values()) - results[strategy]["val"] <= POINT + 1e-9


class _Frozen:
    """Heads on the features of a frozen encoder."""

    def __init__(self, encoder: Encoder, data: ImageDataModule, trainer: Trainer) -> None:
        self.made = time.perf_counter()
        self.classes = data.num_classes
        reader = StageReader(encoder, data, trainer)
        self.features: dict[str, Features] = {}
        for name in ("train", "val", "test"):
            images = getattr(data.splits, name)
            if images is not None:
                self.features[name] = extract({name: reader}, data.in_order(images), trainer)[name].labelled().to("cpu")
        self.split = reader.split
        self.seconds = time.perf_counter() - self.made

    def linear(self) -> dict[str, Any]:
        """Accuracies of logistic regression."""
        bank, *queries = self._of_stage(-1).values()
        both = Features(*(torch.cat(parts) for parts in zip(*queries, strict=True)))
        return self._accuracies(linear_probe(bank, both, self.classes))

    def svm(self, stage: int | None) -> dict[str, Any]:
        """Accuracies of an SVM on the features of a stage."""
        bank, val, *test = self._of_stage(-1 if stage is None else stage).values()
        fit = fit_svm(bank.feature, bank.label, val.feature, val.label, self.classes)
        feature = torch.cat([val.feature, *(each.feature for each in test)]).double()
        return self._accuracies((feature @ fit.weight.T + fit.bias).argmax(1))

    def _of_stage(self, stage: int) -> dict[str, Features]:
        return {name: part._replace(feature=self.split(part.feature)[stage]) for name, part in self.features.items()}

    def _accuracies(self, prediction: Tensor) -> dict[str, Any]:
        """Of predictions for the validation images and then the test images."""
        label = {name: part.label for name, part in self.features.items() if name != "train" and len(part.label)}
        parts = prediction.split([len(each) for each in label.values()])
        found = {name: accuracy(part, label[name], self.classes) for name, part in zip(label, parts, strict=True)}
        return {"val": found["val"], "test": found.get("test"), "steps": 0}


def _trained(
    strategy: str, encoder: Encoder, data: ImageDataModule, steps: int, views: Views | None, options: dict[str, Any]
) -> dict[str, Any]:
    """Accuracies after training by gradient descent."""
    batch_size = fitting_batch_size(len(data.splits.train))
    per_epoch = len(data.splits.train) // batch_size
    epochs = math.ceil(steps / per_epoch)
    # a schedule needs the number of epochs too; there is no validation in between
    length = {"max_steps": steps, "max_epochs": epochs, "check_val_every_n_epoch": epochs + 1}
    warmup = min(1.0, steps / per_epoch / FEWEST_EPOCHS)  # an epoch as in FineTune, less of a run of less than five
    trainer = quiet_trainer(**length, num_sanity_val_steps=0, **options)
    recipe = FineTune(
        copy.deepcopy(encoder),
        data.num_classes,
        views=views,
        lr_batch_size=None,
        scheduler=lambda optimizer: WarmupCosine(optimizer, warmup_epochs=warmup),
        **STRATEGIES[strategy].settings,
    )
    before = data.batch_size
    data.batch_size = batch_size
    try:
        trainer.fit(recipe, datamodule=data)
        val = trainer.validate(recipe, datamodule=data, verbose=False)[0]["val/accuracy"]
        test = None
        if data.splits.test is not None and bool((data.splits.test.label >= 0).any()):
            test = trainer.test(recipe, datamodule=data, verbose=False)[0]["test/accuracy"]
    finally:
        data.batch_size = before
    return {"val": val, "test": test, "steps": trainer.global_step}


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seeds all random numbers, and puts everything back afterwards."""
    names = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")
    before = {name: os.environ.get(name) for name in names}
    with isolate_rng():
        try:
            seed_everything(seed, verbose=False)
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
