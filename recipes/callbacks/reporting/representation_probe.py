import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from datamodules import Batch
from recipes.callbacks.reporting.evaluation_file import write
from recipes.callbacks.reporting.probe_bank import BankReader
from recipes.callbacks.reporting.probe_budget import ProbeBudget
from recipes.callbacks.reporting.progress import SaidOnce, shown
from recipes.callbacks.reporting.references import TRAINED, References
from recipes.callbacks.reporting.training_clock import TrainingClock
from recipes.callbacks.running.feature_collector import FeatureCollector
from recipes.evaluation.bank import Bank
from recipes.evaluation.budget import Plan
from recipes.evaluation.features import Features
from recipes.evaluation.representation import Measured, draws_of_few_labels, measure, similar
from recipes.evaluation.tables import terminal
from recipes.plots.representation import NEIGHBOURS, examples, table

_FEATURE = "feature"


class RepresentationProbe(Callback):
    """Measures how well nearest neighbours (kNN) and logistic regression classify the features of the frozen encoder.

    The bank is the training set, in order, with test transforms and without unlabelled images. If its features exceed
    ``max_bytes``, it is every n-th labelled image: the same images on any number of devices. A line says so, and the
    protocol records it. While training, ``val/knn`` and ``val/linear`` are the accuracies on the validation images,
    with all labels.

    At the end of the test, a table compares the trained encoder with the encoder that training started from and with
    raw pixels, with all labels and with a few per class. The table is printed, logged (``test/knn``,
    ``test/linear_5_per_class``, ``test/random_encoder/knn``, ``test/raw_pixels/knn``, ...) and written to
    ``evaluation.json`` in the run directory, with its protocol. The trained encoder has the weights that the test is
    given; ``checkpoint`` in the protocol names them, with the epochs and images after which they were saved.

    The encoder that training started from is known if the Trainer that trains or loads the checkpoint has this
    callback. Its row is left out if it equals the trained encoder. Raw pixels are those of the image, or of its average
    over areas if it is larger than 32 × 32. Their row is left out if there are too many images.

    In a Trainer that trains, measurements may take a share of the computing of the training, ``max_share``. If the
    full protocol needs more, it is reduced in this order: draws of few labels, references, columns with few labels,
    images of the bank. A line says so before training, and the protocol states it. A test without a training, such as
    ``recipes test``, measures in full. The computing is
    counted in operations, not in seconds, so that the result of a run does not depend on the machine.

    Args:
        every_n_epochs: number of epochs between two measurements, >= 0; the last epoch is always measured. With 0,
            nothing is measured, also after the test. A measurement passes the whole bank through the encoder.
        k: number of neighbours that vote, > 0 (Wu et al., 2018, arXiv:1805.01978, Section 3.4). If the
            bank is smaller, all its images vote, and a line is printed.
        temperature: softmax temperature of the votes, > 0 (ibid.: 0.07).
        labels_per_class: numbers of labels per class of the few-label columns, each > 0; an empty list leaves them out.
        draws: number of times that these labels are drawn, > 0; the columns show mean ± standard deviation.
        seed: seed of the draws. It is not the seed of the run, so that runs are compared on the same labels.
        references: whether the table also has the encoder that training started from and raw pixels. With many images
            these take as long as the trained encoder, or longer.
        max_share: largest share of the computing of the training that all measurements and pictures of the run may
            take, > 0. Some 60 billion operations, a few seconds, are always free. If null, everything is measured.
        max_bytes: largest size of the features of the bank, of all rows of the table together, > 0. Each device holds
            its share, and measures with it; measuring takes about 100 MB more, and with 1,000 classes 800 MB on the
            first device. Features that the encoder gives in half precision, as under ``bf16-mixed``, are kept in it,
            without a loss. The default is 4 GiB: every second image of ImageNet while a ResNet-50 trains in
            ``bf16-mixed``, every third in float32.

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
        max_share: float | None = 0.25,
        max_bytes: int = 4 << 30,
    ) -> None:
        if every_n_epochs < 0:
            raise ValueError(f"every_n_epochs is {every_n_epochs}: it must be positive, or 0 to measure nothing")
        numbers = {"k": k, "temperature": temperature, "draws": draws, "max_bytes": max_bytes}
        if max_share is not None and not max_share > 0:
            raise ValueError(f"max_share is {max_share}: it must be positive, or null to measure everything")
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
        self.max_share = max_share
        self.max_bytes = max_bytes
        splits = ("val", "test") if every_n_epochs else ()
        self.labelled_measures = tuple(f"{split}/{name}" for split in splits for name in ("knn", "linear"))
        self.history: list[tuple[int, float, float]] = []  # optimiser step, val/knn, val/linear
        self.measured: dict[str, Measured] = {}  # by row of the table, from the end of the test until teardown
        self.accuracies: dict[str, dict[str, list[float]]] = {}  # by row and column, one number for each draw
        self._references = References()
        self._clock = TrainingClock()  # of the weights
        self._training: TrainingClock | None = None  # of the training that this process has begun or taken up
        self._fits = False
        self._checkpoint: str | None = None  # whose weights were put in after training
        self._counted = True  # whether the epochs and images of the weights are known
        self._tell = SaidOnce()
        self._bank = BankReader(max_bytes, self._tell)
        self._plan = Plan(1, draws, 3 if references else 1, tuple(labels_per_class))
        self._budget = ProbeBudget(self._plan, max_share, every_n_epochs)
        self._encoders: dict[str, nn.Module] = {}  # by row, while the images pass that are measured

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the encoder at initialisation: weights of a checkpoint come later."""
        if not self._references.is_of(pl_module):
            self._references.remember(pl_module, copied=self.references and self.every_n_epochs > 0)
            self._clock, self._training = TrainingClock(), None
        self._fits = stage == "fit"
        if self._fits:
            self._training, self._checkpoint, self._counted = self._clock, None, True

    # While training

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the features of the validation images, if they are to be measured now."""
        self._encoders = {}
        if self._can_measure(trainer) and self._is_due(trainer):
            self._encoders = {TRAINED: pl_module}
            self._plan = self._budget.of_validation(trainer, pl_module)
            FeatureCollector.of(trainer).collect(_FEATURE)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs ``val/knn`` and ``val/linear``."""
        if not self._encoders:
            return
        queries, banks = self._queries_and_banks(trainer)
        if not banks:
            return
        k = self._neighbours(banks[TRAINED])
        results = measure(banks[TRAINED], queries[TRAINED], _classes(trainer), k, self.temperature)
        results = trainer.strategy.broadcast(results)  # devices of several kinds may round otherwise
        for name, values in results.items():
            pl_module.log(f"val/{name}", values[0], sync_dist=True)
        self.history.append((trainer.global_step, results["knn"][0], results["linear"][0]))

    # At the end

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Asks for the features of the test images, of every encoder of the table."""
        self._encoders = {}
        if self._can_measure(trainer):
            others = self._references.encoders(trainer, pl_module) if self.references else {}
            self._plan = self._budget.of_test(trainer, pl_module, others, self._images_of_training)
            others = dict(list(others.items())[: self._plan.rows - 1])
            self._encoders = {TRAINED: pl_module, **others}
            FeatureCollector.of(trainer).collect(_FEATURE)
            for name, encoder in others.items():
                FeatureCollector.of(trainer).collect(name, _features_of(encoder))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints, logs and writes the table."""
        if not self._encoders:
            return
        queries, banks = self._queries_and_banks(trainer)
        self._references.release()
        if not banks:
            return
        k = self._neighbours(banks[TRAINED])
        few = self._few_labels(trainer, banks[TRAINED].label)
        results = {
            name: measure(banks[name], queries[name], _classes(trainer), k, self.temperature, few)
            for name in shown(trainer, banks, "linear probe and kNN")
        }
        self.accuracies = trainer.strategy.broadcast(results)  # devices of several kinds may round otherwise
        for name, columns in self.accuracies.items():
            prefix = "test/" if name == TRAINED else f"test/{name.replace(' ', '_')}/"
            for column, values in columns.items():
                pl_module.log(f"{prefix}{column}", sum(values) / len(values), sync_dist=True)
        drawn = {name: query.feature[examples(query.label)] for name, query in queries.items()}
        near = {name: similar(banks[name], drawn[name], NEIGHBOURS) for name in banks}
        directory = trainer.log_dir or trainer.default_root_dir  # log_dir is a collective
        if not trainer.is_global_zero:
            return
        self.measured = {name: Measured(near[name].to("cpu"), queries[name].to("cpu")) for name in banks}
        terminal().print(table(self.accuracies, k, self.temperature, self._plan.draws))
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            protocol = self._protocol(trainer, k, len(banks[TRAINED].label))
            write(Path(directory) / "evaluation.json", trainer, pl_module, protocol, self.accuracies)

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
            return self._is_missing("there is no DataModule whose bank_dataloader() gives the training images in order")
        return bool(data.num_classes) or self._is_missing("the data has no classes")

    def _has_labels(self, features: Features | Bank, name: str) -> bool:
        return len(features.label) > 0 or self._is_missing(f"the {name} have no labels")

    def _is_missing(self, reason: str) -> bool:
        self._tell("missing", f"RepresentationProbe measures nothing: {reason}.")
        return False

    def _queries_and_banks(self, trainer: Trainer) -> tuple[dict[str, Features], dict[str, Bank]]:
        """Features of the labelled images to classify, in float32, and of the bank; none where labels are missing."""
        encoders, self._encoders = self._encoders, {}
        collected = FeatureCollector.of(trainer).gather()
        queries = {name: collected[_FEATURE if name == TRAINED else name].labelled() for name in encoders}
        queries = {name: query._replace(feature=query.feature.float()) for name, query in queries.items()}
        if not self._has_labels(queries[TRAINED], "images to classify"):
            return queries, {}
        widths = {name: query.feature.shape[1] for name, query in queries.items()}
        banks = self._bank.read(trainer, encoders, widths, self._plan.every)
        if not self._has_labels(banks[TRAINED], "training images"):
            return queries, {}
        finite = [measured.is_finite() for measured in (Bank.of(queries[TRAINED]), banks[TRAINED])]
        if not all(finite):
            self._is_missing("some features are not finite, because training diverged")
            return queries, {}
        return queries, banks

    def _neighbours(self, bank: Bank) -> int:
        """The number of neighbours that vote: all images of a small bank."""
        images = len(bank.label)
        if self.k > images:
            self._tell("k", f"k is {self.k}, and there are {images} labelled training images: all of them vote.")
        return min(self.k, images)

    def _few_labels(self, trainer: Trainer, label: Tensor) -> dict[int, Tensor]:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        few, missing = draws_of_few_labels(
            label, data.num_classes, self._plan.few_labels, self._plan.draws, self.seed, data.class_names
        )
        for reason in missing:
            if not trainer.fast_dev_run:  # type: ignore[attr-defined]
                rank_zero_warn(reason)
        return few

    @property
    def budget_of_pictures(self) -> float:
        """Operations that the pictures of this run may take."""
        return self._budget.of_pictures(self._images_of_training)

    @property
    def _images_of_training(self) -> int:
        """Images of the whole training of this process; 0, which has no budget, if it only tests."""
        return self._training.images if self._training else 0

    def _protocol(self, trainer: Trainer, k: int, bank_images: int) -> dict[str, Any]:
        """How the numbers of the table came about."""
        subsets = {"bank_subset": self._bank.subset, "test_subset": FeatureCollector.of(trainer).subset}
        return {
            **self._trained(trainer),
            "run_seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
            "num_classes": _classes(trainer),
            "bank_images": bank_images,
            "test_images": len(self.measured[TRAINED].test.label),
            **{name: subset for name, subset in subsets.items() if subset},
            "knn": {"k": k, "temperature": self.temperature, "similarity": "cosine"},
            "linear": {"l2": 1.0, "solver": "L-BFGS", "features": "standardised over the bank"},
            "few_labels": {"per_class": list(self._plan.few_labels), "draws": self._plan.draws, "seed": self.seed},
            **self._budget.protocol(self._plan),
        }

    # How long the encoder was trained

    def weights_of(self, checkpoint: Path, states: dict[str, Any]) -> None:
        """Learns that the recipe has been given the weights of a checkpoint, without the Trainer.

        Args:
            checkpoint: its file.
            states: of the callbacks in it.
        """
        self._checkpoint = checkpoint.name
        self._counted = self.state_key in states
        if self._counted:
            self._clock = TrainingClock.of(states[self.state_key])

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Notes whose weights the recipe has from now on."""
        if not self._fits:
            self._checkpoint = Path(str(trainer.ckpt_path)).name
            self._counted = self.state_key in checkpoint["callbacks"]

    def _trained(self, trainer: Trainer) -> dict[str, Any]:
        """What the protocol states of the training, and of the checkpoint whose weights are measured."""
        name = self._checkpoint
        if name is None and self._training and self._training.images:
            name = "the last state of the training"
        epochs, images = (self._clock.epochs, self._clock.images) if self._counted else (None, None)
        weights = {"name": name, "epochs": epochs, "training_images_seen": images}
        return {**(self._training or self._clock).protocol(), "checkpoint": weights}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Says what the evaluation costs, and starts the clock."""
        if self._budget.start(trainer) and self._can_measure(trainer):
            self._tell("cost", self._budget.announcement(trainer, pl_module))
        self._clock.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts the images and reads the clock: all that happens between two batches counts."""
        self._clock.count(len(batch.index) * trainer.world_size)
        if trainer.is_last_batch:  # before the validation, which may save the best checkpoint
            self._clock.epochs = trainer.current_epoch + 1

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the curve so far, and the epochs behind it."""
        return {"history": self.history, **self._clock.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes up where the checkpoint stopped; a test after training keeps what this knows of the training."""
        self._clock = TrainingClock.of(state_dict)
        if self._fits:
            self._training = self._clock
        if self._fits or self._training is None:
            self.history = list(state_dict["history"])


def _classes(trainer: Trainer) -> int:
    return int(trainer.datamodule.num_classes)  # type: ignore[attr-defined]


def _features_of(encoder: nn.Module) -> Any:
    """The column of another encoder than the recipe's."""
    return lambda recipe, batch, feature: encoder(batch.image)
