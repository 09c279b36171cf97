"""``recipes advise``: measures encoders on your images, and recommends an encoder and a training strategy."""

import dataclasses
import inspect
import json
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from rich.table import Table

import datamodules
from datamodules import ImageDataModule
from recipes.base.classifier import Classifier
from recipes.cli.commands.arguments import parsed
from recipes.cli.commands.encoders import NamedEncoder, named_encoder, reading_of_runs, taken_of_runs
from recipes.evaluation.stage_reader import quiet_trainer
from recipes.evaluation.tables import WIDTH, new_table, per_cent, terminal, versions
from recipes.nn import TimmEncoder, TorchvisionEncoder
from recipes.nn.encoders.torchvision import source_head
from recipes.nn.encoders.weights import checkpoint_file
from recipes.transfer import advisor
from recipes.transfer.advisor import STRATEGIES, Advice, Measurement
from recipes.transfer.verification import check_validation, held, verify

SMALL_IMAGES = 64  # pixels; the networks of torchvision and timm are mostly trained on 224


class _Candidate(NamedTuple):
    """An encoder and its measurement."""

    named: NamedEncoder
    measurement: Measurement


def main(args: list[str]) -> None:
    """Runs the command.

    Args:
        args: such as ["--data", "Digits", "--encoder", "runs/simclr-digits/2025-01-01_00-00-00"].

    Raises:
        ValueError: if an argument is wrong, the data have no labels, one class or fewer images than classes, or an
            encoder, its weights and the images do not fit.
        FileNotFoundError: if the data, a run or a file of weights is not there.
        OSError: if weights cannot be downloaded.
    """
    parser = _parser()
    with parsed(parser, args) as options:
        _advise(parser, options)


def _advise(parser: ArgumentParser, options: Namespace) -> None:
    if not options.encoder:
        raise ValueError(
            "no encoder is given: add --encoder resnet18 --weights DEFAULT, or --encoder runs/<name>/<time>"
        )
    names = list(options.encoder)
    weights = _weights(names, options.weights)
    data: ImageDataModule = parser.instantiate(options).data
    data.read_as(reading_of_runs([*names, *weights]))
    data_config = _config(options.data)
    data_config["init_args"] |= data.reading_arguments
    data.prepare_data()
    data.setup()
    if options.verify:
        check_validation(data)

    trainer = quiet_trainer(accelerator=options.accelerator)
    candidates = [_measured(*pair, data, trainer) for pair in zip(names, weights, strict=True)]
    candidates.sort(key=lambda candidate: candidate.measurement.scores.log_me, reverse=True)
    best = candidates[0]
    advice = advisor.choose(best.measurement)
    images = len(data.splits.train)
    plan = advisor.plan(advice, best.named.config, data_config, images, options.seed)
    results = None
    if options.verify:
        strategies = [name for name in STRATEGIES if best.measurement.random or name != "from-scratch"]
        results = verify(
            best.named.encoder,
            data,
            strategies,
            options.steps,
            options.seed,
            options={"accelerator": options.accelerator},
        )

    output = Path(options.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(_comment(best.measurement, advice, data) + yaml.safe_dump(plan, sort_keys=False))
    output.with_suffix(".json").write_text(
        json.dumps(_report(candidates, advice, results, data_config), indent=1) + "\n"
    )
    console = terminal()
    _print_data(console, data, best)
    console.print(_scores_table([candidate.measurement for candidate in candidates]))
    _print_advice(console, best.measurement, advice)
    if results is not None:
        console.print(_results_table(results, advice.strategy, data))
        console.print(_verdict(results, advice.strategy) + "\n")
    steps = advisor.fitting_steps(images)
    console.print(
        f"{output} is a configuration that trains it for {steps:,} steps:\n\n  recipes fit --config {output}\n",
        soft_wrap=True,
    )
    for line in taken_of_runs([*names, *weights]):
        console.print(line)
    console.print(f"All numbers are in {output.with_suffix('.json')}.", soft_wrap=True)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="recipes advise",
        description="Measures encoders on your images, and recommends an encoder and a training strategy.",
        exit_on_error=False,
    )
    about = "DataModule with the images, such as ImageFolder with --data.root images"
    parser.add_subclass_arguments(ImageDataModule, "data", help=about)
    parser.set_defaults({"data": {"class_path": "datamodules.Digits"}})
    about = "torchvision network (resnet18), timm:<name>, run directory or checkpoint; several encoders are ranked"
    parser.add_argument("--encoder", type=str, nargs="+", help=about)
    about = "pretrained weights, one for all encoders or one each: DEFAULT or another torchvision name, a file, or "
    about += "null for random weights; a run has its own weights"
    parser.add_argument("--weights", type=str, nargs="*", help=about)
    about = "whether to train briefly with every strategy, to check the advice on the validation images"
    parser.add_argument("--verify", type=bool, default=False, help=about)
    about = "number of optimiser steps for each strategy of --verify, > 0; if null, uses 500"
    parser.add_argument("--steps", type=int | None, help=about)
    parser.add_argument("--output", type=str, default="advice.yaml", help="file for the recommended configuration")
    about = "seed of the random numbers of --verify, and seed_everything in the configuration"
    parser.add_argument("--seed", type=int, default=0, help=about)
    about = "device that Lightning uses: auto, cpu, gpu, ...; auto uses a GPU if there is one"
    parser.add_argument("--accelerator", type=str, default="auto", help=about)
    return parser


def _config(data: Namespace) -> dict[str, Any]:
    """Configuration of the DataModule, without arguments that have their default value."""
    given = data.as_dict()
    kind = getattr(datamodules, given["class_path"].rpartition(".")[2], None)
    defaults = {name: p.default for name, p in inspect.signature(kind).parameters.items()} if kind else {}
    arguments = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in given.get("init_args", {}).items()
        if name not in defaults or value != defaults[name]
    }
    return {"class_path": given["class_path"], "init_args": arguments}


def _weights(names: list[str], given: list[str] | None) -> list[str | None]:
    """The weights of each encoder."""
    weights = [None if each in ("null", "none", "None") else each for each in given or ["null"]]
    if len(weights) == 1 and len(names) > 1:  # for all, but runs have their own
        return [None if checkpoint_file(name) else weights[0] for name in names]
    if len(weights) != len(names):
        raise ValueError(
            f"there are {len(names)} encoders and {len(weights)} weights: give one for all or one for each, with null "
            "for an encoder that has its own"
        )
    return weights


def _measured(name: str, weights: str | None, data: ImageDataModule, trainer: Any) -> _Candidate:
    named = named_encoder(name, weights, data.image_shape[0])
    head: Callable[..., Any] | None = None
    if isinstance(named.recipe, Classifier):
        head = named.recipe.logits
    elif isinstance(named.encoder, TorchvisionEncoder):
        head = source_head(name, weights)
    if not named.encoder.pretrained:
        rank_zero_warn(f"{name} has random weights, so there is nothing to transfer: set --weights")
    return _Candidate(named, advisor.measure(name, named.encoder, data, trainer, head))


def _comment(measurement: Measurement, advice: Advice, data: ImageDataModule) -> str:
    lines = [f"{advice.strategy} of {measurement.encoder} on {type(data).__name__}, advised by recipes advise"]
    lines += [line for reason in advice.reasons for line in textwrap.wrap(reason, 110)]
    return "".join(f"# {line}\n" for line in lines)


def _report(
    candidates: list[_Candidate], advice: Advice, results: dict[str, Any] | None, data: dict[str, Any]
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "data": data,
        "encoders": [
            {
                **dataclasses.asdict(each.measurement),
                "similarity": each.measurement.similarity,
                "similar_from": advisor.similar_from(each.measurement),
                "config": each.named.config,
            }
            for each in candidates
        ],
        "thresholds": advisor.THRESHOLDS._asdict(),
        "advice": dataclasses.asdict(advice),
        "versions": versions(),
    }
    if results is not None:
        report["verified"] = {"held": held(results, advice.strategy), "strategies": results}
    return report


def _print_data(console: Console, data: ImageDataModule, best: _Candidate) -> None:
    m = best.measurement
    smallest, largest = (f(m.images_per_class) for f in (min, max))
    names = [m.class_names[m.images_per_class.index(count)] for count in (smallest, largest)]
    spread = f"{smallest:,} of each"
    if smallest < largest:
        spread = f"from {smallest:,} ({names[0]}) to {largest:,} ({names[1]}), the median {m.median:g}"
    used = "all of them" if m.images_used == m.images else f"{m.images_used:,} of them, evenly over the classes"
    console.print(
        f"{type(data).__name__}: {m.images:,} labelled training images of {len(m.class_names)} classes, {spread}. "
        f"Measured on {used}."
    )
    channels, height, width = data.image_shape
    large = isinstance(best.named.encoder, TimmEncoder | TorchvisionEncoder)
    if large and best.named.encoder.reading.image_size is None and min(height, width) < SMALL_IMAGES:
        arguments = inspect.signature(type(data)).parameters
        option = next((f"--data.{name} 224" for name in ("image_size", "size") if name in arguments), "")
        advice = f"try {option}" if option else "enlarge them"
        console.print(f"The images are {height} × {width}: {m.encoder} works best with about 224 pixels; {advice}.")


def _scores_table(measurements: list[Measurement]) -> Table:
    k = measurements[0].k
    caption = (
        f"kNN: leave-one-out accuracy of {k} neighbour{'s' * (k > 1)}; random: that of the same network with random "
        "weights. Similarity: fraction of the label variance left unexplained by random networks that is explained."
    )
    if len(measurements) > 1:
        caption += (
            " Sorted by LogME, best first. LogME needs no classifier of the encoder. It weighs how well the features "
            "explain the labels against the number of features."
        )
    table = new_table(collapse_padding=False, caption=caption, caption_justify="left")
    table.add_column("encoder", overflow="fold")
    for name in ("kNN %", "random %", "similarity", "LogME", "H-score", "LEEP"):
        table.add_column(name, justify="right", no_wrap=True)
    for m in measurements:
        random = per_cent(None if m.random is None else m.random.knn)
        leep = "–" if m.leep is None else f"{m.leep:.3f}"
        scores = (f"{m.scores.log_me:.3f}", f"{m.scores.h_score:.2f}", leep)
        table.add_row(m.encoder, per_cent(m.scores.knn), random, f"{m.similarity:.2f}", *scores)
    return table


def _print_advice(console: Console, m: Measurement, advice: Advice) -> None:
    console.print(f"{m.encoder}: {advice.size} data, {advice.kinship} images. Advice: {advice.strategy}.\n")
    for reason in advice.reasons:
        lines = textwrap.wrap(reason, WIDTH - 2, initial_indent="- ", subsequent_indent="  ")
        console.print("\n".join(lines))
    console.print()


def _results_table(results: dict[str, dict[str, Any]], advised: str, data: ImageDataModule) -> Table:
    val: Any = data.splits.val
    count = int((val.label >= 0).sum())
    table = new_table(
        collapse_padding=False,
        title="Results of the strategies",
        caption=f"One of the {count} validation images is {100 / count:.1f} points.",
    )
    table.add_column("strategy", no_wrap=True)
    for name in ("validation %", "test %", "steps", "minutes"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, result in results.items():
        test = per_cent(result["test"])
        mark = " (advised)" if name == advised else ""
        table.add_row(name + mark, per_cent(result["val"]), test, f"{result['steps']:,}", f"{result['minutes']:.2f}")
    return table


def _verdict(results: dict[str, dict[str, Any]], advised: str) -> str:
    best = max(results, key=lambda name: results[name]["val"])
    if held(results, advised):
        return f"The advice held: no strategy is better than {advised} by more than 1 point on the validation images."
    gap = 100 * (results[best]["val"] - results[advised]["val"])
    return f"The advice did not hold: on the validation images {best} is better than {advised} by {gap:.1f} points."
