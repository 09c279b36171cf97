import copy
import json
import math
import os
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules import Batch
from recipes.evaluation import accuracy, few_label_draws, knn, linear_probe
from recipes.evaluation.features import Collector, Features, extract, forward
from recipes.evaluation.tables import summary, terminal, versions
from recipes.plots.representation import table

TRAINED = "trained encoder"
RANDOM = "random encoder"
PRETRAINED = "pretrained encoder"
PIXELS = "raw pixels"

_PIXEL_SIDE = 32
_MOST_PIXELS = 400_000_000  # of the bank; more, as of ImageNet, would not fit in memory as floats


class Measured(NamedTuple):
    """Features of the labelled images of the bank and of the test set, on the CPU."""

    bank: Features
    test: Features


class RepresentationProbe(Callback):
    """Measures how much a frozen encoder knows about the classes: weighted kNN and logistic regression.

    The bank is the training set, in order, with test transforms; images without a label take no part. While training,
    ``val/knn`` and ``val/linear`` are the accuracies on the validation images, with all labels.

    At the end of the test, a table compares the trained encoder with the one that training started from and with raw
    pixels, given all labels and given a few per class. It is printed, logged (``test/knn``,
    ``test/linear_5_per_class``, ``test/random_encoder/knn``, ``test/raw_pixels/knn``, ...) and written to
    ``evaluation.json`` in the run directory, with its protocol. The encoder is the one that the test is given: after
    ``fit``, that of the last step.

    The encoder that training started from is known where the Trainer that trains or loads the checkpoint has this
    callback; its row is left out where it does not differ from the trained encoder. Pixels are those of the image,
    or of its average over areas if it is larger than 32 × 32; the row is left out where there are too many images.

    Args:
        every_n_epochs: measure at the validations of every n-th epoch and of the last, >= 0; 0 never measures, not at
            the end of the test either. One measurement passes the whole bank through the encoder.
        k: neighbours that vote, > 0 (Wu et al., 2018, arXiv:1805.01978, Section 3.4).
        temperature: of their votes, > 0 (ibid.: 0.07).
        labels_per_class: how many labels each class gets in the few-label columns, each > 0; none leaves them out.
        draws: how many times these labels are drawn, > 0; the columns say mean ± standard deviation.
        seed: of the draws. It is not the seed of the run, so that runs are compared on the same labels.
        references: whether the table also has the encoder that training started from and raw pixels. On many images
            these take as long as the trained encoder, or longer.

    Raises:
        ValueError: if a number is not positive, or ``every_n_epochs`` is negative.
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        k: int = 200,
        temperature: float = 0.07,
        labels_per_class: Sequence[int] = (1, 5),
        draws: int = 20,
        seed: int = 0,
        references: bool = True,
    ) -> None:
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs is {every_n_epochs}: it must be positive, or 0 to measure nothing")
        numbers = {"k": k, "temperature": temperature, "draws": draws}
        for name, number in [*numbers.items(), *(("labels_per_class", n) for n in labels_per_class)]:
            if not number > 0:
                raise ValueError(f"{name} is {number}: it must be positive")
        self.every_n_epochs = every_n_epochs
        self.k = k
        self.temperature = temperature
        self.labels_per_class = list(labels_per_class)
        self.draws = draws
        self.seed = seed
        self.references = references
        self.history: list[tuple[int, float, float]] = []  # optimiser step, val/knn, val/linear
        self.measured: dict[str, Measured] = {}  # by row of the table, from the end of the test until teardown
        self.accuracies: dict[str, dict[str, list[float]]] = {}  # by row and column, one number for each draw
        self._initial: nn.Module | None = None
        self._initial_of: weakref.ref[LightningModule] | None = None
        self._epochs = 0
        self._seconds = 0.0
        self._images = 0
        self._last = 0.0
        self._told = False
        self._encoders: dict[str, nn.Module] = {}  # by row, during the test
        self._collectors: dict[str, Collector] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the encoder as it was made: weights of a checkpoint come later."""
        if self._initial_of is None or self._initial_of() is not pl_module:
            encoder: Any = pl_module.encoder
            if self.references and self.every_n_epochs > 0:
                self._initial = copy.deepcopy(encoder).cpu().eval().requires_grad_(False)
            self._initial_of = weakref.ref(pl_module)
            self._epochs, self._seconds, self._images = 0, 0.0, 0

    # While training

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes room for the features of the validation images."""
        self._collectors = {}
        if self._can_measure(trainer) and self._is_due(trainer):
            self._collectors = {TRAINED: Collector(pl_module.device)}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the features that ``validation_step`` returned."""
        for collector in self._collectors.values():
            collector.add(outputs, batch, dataloader_idx)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs ``val/knn`` and ``val/linear``."""
        if not self._collectors:
            return
        query = self._collectors.pop(TRAINED).gather().labelled()
        if not self._has_labels(query, "images to classify"):
            return
        bank = self._bank(trainer, {TRAINED: pl_module})[TRAINED]
        if not self._has_labels(bank, "training images"):
            return
        results: Any = None
        if trainer.is_global_zero:
            results = self._measure(bank, query, trainer, [])
        results = trainer.strategy.broadcast(results)
        for name, values in results.items():
            pl_module.log(f"val/{name}", values[0], sync_dist=True)
        self.history.append((trainer.global_step, results["knn"][0], results["linear"][0]))

    # At the end

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Takes the random encoder to the device."""
        self._collectors = {}
        if self._can_measure(trainer):
            self._encoders = self._rows(trainer, pl_module)
            self._collectors = {name: Collector(pl_module.device) for name in self._encoders}

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps the features that ``test_step`` returned, and those of the encoders it is compared with."""
        for name, collector in self._collectors.items():
            feature = outputs if name == TRAINED else forward(self._encoders[name], batch.image, trainer)
            collector.add(feature, batch, dataloader_idx)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints, logs and writes the table."""
        if not self._collectors:
            return
        queries = {name: collector.gather().labelled() for name, collector in self._collectors.items()}
        banks = {}
        if self._has_labels(queries[TRAINED], "images to classify"):
            banks = self._bank(trainer, self._encoders)
        self._collectors, self._encoders = {}, {}
        if self._initial is not None:
            self._initial.cpu()
        if not banks or not self._has_labels(banks[TRAINED], "training images"):
            return
        few = self._few_labels(trainer, banks[TRAINED].label)
        results: Any = None
        if trainer.is_global_zero:
            results = {name: self._measure(banks[name], queries[name], trainer, few) for name in banks}
        self.accuracies = trainer.strategy.broadcast(results)
        for name, columns in self.accuracies.items():
            prefix = "test/" if name == TRAINED else f"test/{name.replace(' ', '_')}/"
            for column, values in columns.items():
                pl_module.log(f"{prefix}{column}", sum(values) / len(values), sync_dist=True)
        directory = trainer.log_dir or trainer.default_root_dir  # log_dir is a collective
        if not trainer.is_global_zero:
            return
        self.measured = {name: Measured(banks[name].to("cpu"), queries[name].to("cpu")) for name in banks}
        terminal().print(table(self.accuracies, self.k, self.temperature, self.draws))
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._write(Path(directory) / "evaluation.json", trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets the features go."""
        self.measured = {}

    # What is measured, and on what

    def _is_due(self, trainer: Trainer) -> bool:
        if trainer.sanity_checking:
            return False
        epoch = trainer.current_epoch + 1
        return trainer.state.fn != TrainerFn.FITTING or epoch % self.every_n_epochs == 0 or epoch == trainer.max_epochs

    def _can_measure(self, trainer: Trainer) -> bool:
        if self.every_n_epochs == 0:
            return False
        data: Any = getattr(trainer, "datamodule", None)
        if data is None or not hasattr(data, "bank_dataloader"):
            return self._tell("there is no DataModule whose bank_dataloader() gives the training images in order")
        return bool(data.num_classes) or self._tell("the data has no classes")

    def _has_labels(self, features: Features, name: str) -> bool:
        return len(features.label) > 0 or self._tell(f"the {name} have no labels")

    def _tell(self, reason: str) -> bool:
        if not self._told:
            rank_zero_info(f"RepresentationProbe measures nothing: {reason}.")
        self._told = True
        return False

    def _rows(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, nn.Module]:
        """The encoders of the table; mean and standard deviation of the images are the recipe's for both."""
        rows: dict[str, nn.Module] = {TRAINED: pl_module}
        if not self.references:
            return rows
        encoder: Any = pl_module.encoder
        if self._initial is not None and not _same(self._initial, encoder):
            initial = trainer.precision_plugin.convert_module(self._initial).to(pl_module.device)
            name = PRETRAINED if getattr(initial, "pretrained", False) else RANDOM
            normalize: Any = pl_module.normalize
            rows[name] = nn.Sequential(normalize, initial)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        channels, *sides = data.image_shape
        pixels = len(data.bank_dataloader().dataset) * channels * math.prod(min(side, _PIXEL_SIDE) for side in sides)
        if pixels <= _MOST_PIXELS:
            rows[PIXELS] = _Pixels()
        return rows

    def _bank(self, trainer: Trainer, encoders: dict[str, nn.Module]) -> dict[str, Features]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return {name: bank.labelled() for name, bank in extract(encoders, data.bank_dataloader(), trainer).items()}

    def _few_labels(self, trainer: Trainer, labels: Tensor) -> list[tuple[int, Tensor]]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        few = []
        for n in self.labels_per_class:
            try:
                few.append((n, few_label_draws(labels, data.num_classes, n, self.draws, self.seed, data.class_names)))
            except ValueError as error:  # the other columns are worth having
                if not trainer.fast_dev_run:  # type: ignore[attr-defined]
                    rank_zero_warn(f"no results for {n} labels per class: {error}")
        return few

    def _measure(
        self, bank: Features, query: Features, trainer: Trainer, few: list[tuple[int, Tensor]]
    ) -> dict[str, list[float]]:
        classes = trainer.datamodule.num_classes  # type: ignore[attr-defined]

        def score(prediction: Tensor) -> list[float]:
            return [accuracy(row, query.label, classes) for row in prediction.view(-1, len(query.label))]

        results = {}
        for n, draws in few:
            results[f"knn_{n}_per_class"] = score(knn(bank, query, classes, self.k, self.temperature, draws))
            results[f"linear_{n}_per_class"] = score(linear_probe(bank, query, classes, draws))
        results["knn"] = score(knn(bank, query, classes, self.k, self.temperature))
        results["linear"] = score(linear_probe(bank, query, classes))
        return results

    # How it is told

    def _write(self, path: Path, trainer: Trainer, pl_module: LightningModule) -> None:
        bank, test = self.measured[TRAINED]
        report = {
            "recipe": type(pl_module).__name__,
            "encoder": type(pl_module.encoder).__name__,
            "data": type(trainer.datamodule).__name__,  # type: ignore[attr-defined]
            "protocol": {
                "split": "test",
                "model": "the weights given to the test, encoder in eval mode, test transforms",
                "epochs": self._epochs,
                "training_images_seen": self._images,
                "training_minutes": round(self._seconds / 60, 2),
                "run_seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
                "num_classes": trainer.datamodule.num_classes,  # type: ignore[attr-defined]
                "bank_images": len(bank.label),
                "test_images": len(test.label),
                "knn": {"k": self.k, "temperature": self.temperature, "similarity": "cosine"},
                "linear": {"l2": 1.0, "solver": "L-BFGS", "features": "standardised over the bank"},
                "few_labels": {"per_class": self.labels_per_class, "draws": self.draws, "seed": self.seed},
                "precision": str(trainer.precision),
                "devices": trainer.world_size,
            },
            "accuracy": summary(self.accuracies),
            "versions": versions(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")

    # How long the encoder was trained

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts the images and reads the clock: all that happens between two batches counts."""
        self._images += len(batch.index) * trainer.world_size
        now = time.perf_counter()
        self._seconds += now - self._last
        self._last = now

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Counts the epoch."""
        self._epochs = trainer.current_epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the curve so far, and the epochs behind it."""
        counts = {"epochs": self._epochs, "images": self._images, "seconds": self._seconds}
        return {"history": self.history, **counts}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where the checkpoint stopped."""
        self.history = list(state_dict["history"])
        self._epochs = state_dict["epochs"]
        self._images = state_dict["images"]
        self._seconds = state_dict["seconds"]


class _Pixels(nn.Module):
    """Images as features: floats in [0, 1]."""

    def forward(self, image: Tensor) -> Tensor:
        image = image if image.is_floating_point() else image.float() / 255
        height, width = image.shape[-2:]
        return F.adaptive_avg_pool2d(image, (min(height, _PIXEL_SIDE), min(width, _PIXEL_SIDE))).flatten(1)


def _same(one: nn.Module, other: nn.Module) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name].to(value)) for name, value in one.state_dict().items())
