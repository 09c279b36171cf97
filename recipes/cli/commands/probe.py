"""``recipes probe``: measures the features of each stage of an encoder with several classifiers."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from rich.table import Table

from datamodules import ImageDataModule
from recipes.cli.commands.arguments import parsed
from recipes.cli.commands.encoders import named_encoder, reading_of_runs, taken_of_runs
from recipes.cli.run_directory import new_directory, nothing_left_if_refused
from recipes.evaluation import StageReader, accuracy, fit_svm, knn, linear_probe, quiet_trainer
from recipes.evaluation.features import Features, extract
from recipes.evaluation.svm import GRID
from recipes.evaluation.tables import new_table, per_cent, terminal, versions
from recipes.nn import Encoder, stages
from recipes.transfer.linear_probe import LinearProbe

HEADS = {"knn": "kNN", "logistic": "logistic", "svm": "SVM", "sgd": "SGD"}
TRAINED, RANDOM = "trained weights", "random weights"
_EPOCHS = 90  # of SGD: that of SimCLR, Appendix B.6

Measured = dict[str, dict[str, Any]]  # by head: accuracies in [0, 1] by split, and C of an SVM


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: such as ["--data", "Digits", "--encoder", "runs/simclr-digits/2025-01-01_00-00-00"].

    Raises:
        ValueError: if an argument is wrong, the images have labels of fewer than two classes or there are none to
            measure on, or encoder, weights and images do not fit.
        FileNotFoundError: if the data, a run or a file of weights is not there.
    """
    parser = _parser()
    with parsed(parser, args) as options, nothing_left_if_refused():
        _probe(parser, options)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="recipes probe",
        description="Measures the features of each stage of an encoder with several classifiers.",
        exit_on_error=False,
    )
    parser.add_subclass_arguments(
        ImageDataModule, "data", help="DataModule with the images, such as Digits or ImageFolder"
    )
    parser.set_defaults({"data": {"class_path": "datamodules.Digits"}})
    about = "torchvision network (resnet18), timm:<name>, ConvNet, ResNet, run directory or checkpoint"
    parser.add_argument("--encoder", type=str, required=True, help=about)
    about = (
        "pretrained weights: DEFAULT or another torchvision name, or a file; a run has its own; if null, random weights"
    )
    parser.add_argument("--weights", type=str | None, help=about)
    about = "classifiers to fit: knn (nearest neighbours), logistic (regression by L-BFGS), svm (linear, C chosen on "
    about += f"validation images), sgd (linear layer, {_EPOCHS} epochs)"
    parser.add_argument("--heads", type=list[str], default=["knn", "logistic", "svm"], help=about)
    about = "whether to measure the encoder with random weights too, as a reference"
    parser.add_argument("--random", type=bool, default=True, help=about)
    parser.add_argument("--k", type=int, default=200, help="number of neighbours that vote, >= 1")
    about = "softmax temperature of the neighbours' votes, > 0"
    parser.add_argument("--temperature", type=float, default=0.07, help=about)
    parser.add_argument("--runs", type=str, default="runs", help="folder for the directories of all runs")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random weights and of SGD")
    about = "device that Lightning uses: auto, cpu, gpu, ...; auto uses a GPU if there is one"
    parser.add_argument("--accelerator", type=str, default="auto", help=about)
    return parser


def _probe(parser: ArgumentParser, options: Namespace) -> None:
    if unknown := [head for head in options.heads if head not in HEADS]:
        raise ValueError(f"there is no head {unknown[0]!r}: heads are {', '.join(HEADS)}")
    if not options.heads:
        raise ValueError(f"heads are empty: give some of {', '.join(HEADS)}")
    data: ImageDataModule = parser.instantiate(options).data
    data.read_as(reading_of_runs([options.encoder, options.weights]))
    data.prepare_data()
    data.setup()
    splits = _labelled_splits(data)
    notes = []
    labelled = int((data.splits.train.label >= 0).sum())
    if "knn" in options.heads and options.k > labelled:
        notes = [f"k is {options.k}, and there are {labelled} labelled training images: all of them vote."]
        options.k = labelled
    named = named_encoder(options.encoder, options.weights, data.image_shape[0])
    encoders = {TRAINED if named.encoder.pretrained else RANDOM: named.encoder}
    if options.random and named.encoder.pretrained:
        encoders[RANDOM] = _fresh(named.encoder, options.seed)

    with isolate_rng():
        found = {name: _measure(encoder, data, splits, options) for name, encoder in encoders.items()}
    directory = new_directory(Path(options.runs) / f"probe-{type(data).__name__.lower()}")
    report = {
        "encoder": named.config,
        "data": _plain(options.data),
        "protocol": _protocol(data, splits, options),
        "accuracy": found,
        "versions": versions(),
    }
    (directory / "probe.json").write_text(json.dumps(report, indent=1) + "\n")
    console = terminal()
    console.print(_table(found, options, type(data).__name__))
    for line in (*notes, *taken_of_runs([options.encoder, options.weights])):
        console.print(line)
    console.print(f"All numbers are in {directory / 'probe.json'}.", soft_wrap=True)


def _labelled_splits(data: ImageDataModule) -> list[str]:
    """The splits that have labels, the training images first."""
    labels = {name: getattr(data.splits, name).label for name in ("train", "val", "test") if getattr(data.splits, name)}
    found = [name for name, label in labels.items() if bool((label >= 0).any())]
    classes = labels["train"][labels["train"] >= 0].unique()
    if len(classes) < 2:
        raise ValueError(
            f"the labelled training images are of {len(classes)} class{'es' * (len(classes) != 1)}: heads need at "
            "least two; put the images of each class into a folder of its own"
        )
    if found == ["train"]:
        raise ValueError(f"{type(data).__name__} has no labelled validation or test images to measure on")
    return found


def _fresh(encoder: Encoder, seed: int) -> Encoder:
    with isolate_rng():
        torch.manual_seed(seed)
        return encoder.fresh()


def _measure(encoder: Encoder, data: ImageDataModule, splits: list[str], options: Namespace) -> dict[str, Measured]:
    """What each head makes of each stage."""
    trainer = quiet_trainer(accelerator=options.accelerator)
    reader = StageReader(encoder, data, trainer)
    features = {
        split: extract({split: reader}, data.in_order(getattr(data.splits, split)), trainer)[split].labelled()
        for split in splits
    }
    found: dict[str, Measured] = {}
    for number, stage in enumerate(stages(encoder)):
        of_stage = {
            split: each._replace(feature=reader.split(each.feature)[number]) for split, each in features.items()
        }
        found[stage.name] = {
            head: _by_sgd(encoder, number, data, splits, options)
            if head == "sgd"
            else _fit(head, of_stage, data.num_classes, options)
            for head in options.heads
        }
    return found


def _fit(head: str, features: dict[str, Features], classes: int, options: Namespace) -> dict[str, Any]:
    bank, queries = features["train"], {split: each for split, each in features.items() if split != "train"}
    if head == "svm":
        val = features.get("val")
        svm = fit_svm(
            bank.feature, bank.label, None if val is None else val.feature, None if val is None else val.label, classes
        )
        predicted = {
            split: (each.feature.cpu().double() @ svm.weight.T + svm.bias).argmax(1).to(each.label.device)
            for split, each in queries.items()
        }
    elif head == "knn":
        predicted = {split: knn(bank, each, classes, options.k, options.temperature) for split, each in queries.items()}
    else:
        both = Features(*(torch.cat(parts) for parts in zip(*queries.values(), strict=True)))
        parts = linear_probe(bank, both, classes).split([len(each.label) for each in queries.values()])
        predicted = dict(zip(queries, parts, strict=True))
    found: dict[str, Any] = {split: accuracy(predicted[split], each.label, classes) for split, each in queries.items()}
    if head == "svm":
        found |= {"C": svm.C, **({"bank_subset": svm.subset} if svm.subset else {})}
    return found


def _by_sgd(
    encoder: Encoder, stage: int, data: ImageDataModule, splits: list[str], options: Namespace
) -> dict[str, float]:
    seed_everything(options.seed, verbose=False)
    recipe = LinearProbe(encoder, data.num_classes, stage=stage, batch_norm=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that an encoder is in eval mode, or random
        quiet_trainer(accelerator=options.accelerator, max_epochs=_EPOCHS, limit_val_batches=0).fit(
            recipe, datamodule=data
        )
        trainer, found = quiet_trainer(accelerator=options.accelerator), {}
        if "val" in splits:
            found["val"] = trainer.validate(recipe, datamodule=data, verbose=False)[0]["val/accuracy"]
        if "test" in splits:
            found["test"] = trainer.test(recipe, datamodule=data, verbose=False)[0]["test/accuracy"]
    return found


def _protocol(data: ImageDataModule, splits: list[str], options: Namespace) -> dict[str, Any]:
    protocols = {
        "knn": {"k": options.k, "temperature": options.temperature, "similarity": "cosine"},
        "logistic": {"l2": 1.0, "solver": "L-BFGS", "features": "standardised over the training images"},
        "svm": {
            "solver": "liblinear, one class against the rest, squared hinge loss",
            "grid": GRID,
            "C": "best on the validation images" if "val" in splits else "best in cross-validation",
            "features": "standardised over the training images",
        },
        "sgd": {"recipe": "LinearProbe", "batch_norm": True, "epochs": _EPOCHS, "batch_size": data.batch_size},
    }
    return {
        "encoder": "frozen, eval mode, test transforms; of each stage the mean over all places",
        "images": {split: int((getattr(data.splits, split).label >= 0).sum()) for split in splits},
        "num_classes": data.num_classes,
        "seed": options.seed,
        **{head: protocols[head] for head in options.heads},
    }


def _table(found: dict[str, dict[str, Measured]], options: Namespace, data: str) -> Table:
    """Stages in rows and heads in columns, a block for each kind of weights."""
    cells = [cell for block in found.values() for row in block.values() for cell in row.values()]
    shown = [split for split in ("test", "val") if split in cells[0]]
    both = " (in brackets: validation)" if len(shown) == 2 else ""
    table = new_table(
        title=f"{'Test' if 'test' in shown else 'Validation'} accuracy of frozen features on {data} (%){both}",
        caption="By stage of the encoder; the features of the last are those of the encoder."
        + (f"\nkNN: k = {options.k}" if "knn" in options.heads else ""),
    )
    table.add_column("", overflow="ellipsis", no_wrap=True)
    for head in options.heads:
        table.add_column(HEADS[head], justify="right", no_wrap=True)
    for name, rows in found.items():
        table.add_row(name)
        for number, (stage, row) in enumerate(rows.items()):
            table.add_row(
                f"  {number}: {stage}", *(_cell([row[head][split] for split in shown]) for head in options.heads)
            )
    return table


def _cell(values: Sequence[float]) -> str:
    first, *second = map(per_cent, values)
    return first + "".join(f" ({value:>5})" for value in second)


def _plain(options: Namespace) -> dict[str, Any]:
    """A configuration as JSON can hold it."""
    plain: dict[str, Any] = json.loads(json.dumps(options.as_dict(), default=str))
    return plain
