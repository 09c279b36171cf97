"""Reads finished runs: the reports, the logged metrics and the configuration of run directories."""

import csv
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from recipes.base.texts import mapping_from_json, mapping_from_yaml, text_of
from recipes.evaluation.continual import says_forward_transfer
from recipes.evaluation.cost import megabytes
from recipes.nn.encoders.files import RECORD
from recipes.nn.encoders.weights import NULL

REPORTS = ("evaluation", "classes", "distillation", "continual")
_FILES = ("config.yaml", "metrics.csv", *(f"{name}.json" for name in REPORTS))  # of a run directory
_NO_RUNS = ("probe.json", "predictions.npz")  # written by recipes probe and predict, into directories of their own
_NAMED = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(_\d+)?")  # a run directory, by its time
_DEPTH = 4  # folders between a given folder and its runs
_OF_ONE_RUN = ("seed_everything", "ckpt_path", "name", "runs", "trainer.logger", "trainer.default_root_dir")
_REPORTING = (  # the training is the same whatever these are
    *("pictures", "report", "prediction", "checkpoint", "probe.references", "probe.every_n_epochs"),
    *("trainer.log_every_n_steps", "trainer.check_val_every_n_epoch"),
)
_MEASURES = re.compile(r"(test|val)/|train/loss$")


class Run(NamedTuple):
    """What a run left behind.

    Attributes:
        directory: of the run.
        name: of its configuration, such as "simclr-digits".
        recipe: class name.
        seed: None if it is not known.
        settings: the configuration by dotted keys, without the seed, the directories and the reporting of this run.
        measures: the value of each measure for the checkpoint that is evaluated, by the name under which it is logged.
        cost: ``minutes`` of training, ``epochs``, ``steps``, ``images_per_second``, ``parameters`` that learn,
            ``megabytes`` of everything stored, ``flops`` per image of a step; only those that are known.
        rows: of metrics.csv, without empty cells.
        reports: the JSON reports by name.
        best: validation measure whose best checkpoint is evaluated; None if it is the last checkpoint.
    """

    directory: Path
    name: str
    recipe: str
    seed: int | None
    settings: dict[str, Any]
    measures: dict[str, float]
    cost: dict[str, float]
    rows: list[dict[str, float]]
    reports: dict[str, Any]
    best: str | None = None


def read_reports(directory: Path) -> dict[str, Any]:
    """Reads the reports of a run: what ``evaluation.json`` and the other files of ``REPORTS`` hold, by name.

    Raises:
        ValueError: if a report is not complete JSON.
    """
    found = {}
    for name in REPORTS:
        if (file := directory / f"{name}.json").is_file():
            found[name] = mapping_from_json(file, f"its {file.name}")
    return found


def read_metrics(file: Path) -> list[dict[str, float]]:
    """Reads the rows of ``metrics.csv``, without empty cells; no rows if there is no file."""
    if not file.is_file():
        return []
    with file.open(newline="") as lines:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]


def last_values(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Finds the last value of every column: metrics are logged at different steps, in rows of their own."""
    last: dict[str, float] = {}
    for row in rows:
        last |= row
    return last


def read_run(directory: Path) -> Run:
    """Reads a run directory.

    Raises:
        ValueError: if the run has not finished or only tests another, or a file is not complete; the message has the
            reason alone.
    """
    reports, rows = read_reports(directory), read_metrics(directory / "metrics.csv")
    file = directory / "config.yaml"
    config = mapping_from_yaml(text_of(file), f"its {file.name}") if file.is_file() else {}
    if _only_tests(config):
        raise ValueError("it trained nothing: give the run that it tested or validated")
    last = last_values(rows)
    best = _best(directory)
    if not reports and not _has_finished(config, last):
        raise ValueError("it has no report: it has not finished, has failed or had no test images")
    protocol = _protocol(reports)
    seed = protocol.get("run_seed", protocol.get("seed", config.get("seed_everything")))
    about: dict[str, Any] = next((report for report in reports.values() if "recipe" in report), {})
    recipe = about.get("recipe") or str(config.get("model", {}).get("class_path", "?")).rpartition(".")[2]
    return Run(
        directory=directory,
        name=_name(directory),
        recipe=recipe,
        seed=None if seed is None or isinstance(seed, bool) else int(seed),
        settings=_settings(config),
        measures=_measures({**last, **best.get("measures", {})}, reports),
        cost=_cost(last, reports, protocol),
        rows=rows,
        reports=reports,
        best=best.get("monitor"),
    )


def find_runs(paths: Sequence[str | Path]) -> tuple[list[Run], list[str]]:
    """Reads all runs of some directories.

    In a folder of runs, of several runs with the same name, settings and seed only the newest counts.

    Args:
        paths: run directories, or folders of runs such as ``runs`` and ``runs/simclr-digits``.

    Returns:
        The runs, each once, and a line for each run that is left out, with the reason.

    Raises:
        FileNotFoundError: if a directory does not exist.
        ValueError: if there is no run in a folder, or every run is left out.
    """
    found: dict[Path, Run] = {}
    left_out: dict[Path, str] = {}
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"there is no run {path}: give the directory of a run, or a folder of runs")
        directories = sorted(_run_directories(path, _DEPTH))
        if not directories:
            raise ValueError(f"{path} has no runs: give the directory of a run, or a folder of runs")
        newest: dict[tuple[Any, ...], Run] = {}
        for directory in directories:
            try:
                run = read_run(directory)
            except ValueError as error:
                left_out[directory.resolve()] = f"{directory} is left out: {error}."
                continue
            except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:  # the files were changed by hand
                what = f"{type(error).__name__}: {' '.join(str(error).split())}"
                left_out[directory.resolve()] = f"{directory} is left out: its files cannot be read ({what})."
                continue
            before = newest.get(key := (*alike(run), run.seed))
            if before and bool(_trained(before)) > bool(_trained(run)):
                run, before = before, run  # a later repetition of the final test has no curves
            if before:
                left_out[before.directory.resolve()] = (
                    f"{before.directory} is left out: {run.directory.name} has the same settings and seed."
                )
            newest[key] = run
        found |= {run.directory.resolve(): run for run in newest.values()}
    if not found:
        more = f" (and {len(left_out) - 1} more)" if len(left_out) > 1 else ""
        raise ValueError(f"no run can be compared: {next(iter(left_out.values()))}{more}")
    return list(found.values()), [line for directory, line in left_out.items() if directory not in found]


def _best(directory: Path) -> dict[str, Any]:
    """What the run recorded of its best checkpoint; empty if it keeps none."""
    file = directory / "checkpoints" / RECORD
    return mapping_from_json(file, f"its {file.name}") if file.is_file() else {}


def alike(run: Run) -> tuple[str, str, str]:
    """Returns the key that runs share which differ in their seed alone."""
    return run.name, run.recipe, json.dumps(run.settings, sort_keys=True, default=str)


def _run_directories(folder: Path, depth: int) -> Iterator[Path]:
    if any((folder / name).is_file() for name in _NO_RUNS):
        return
    if _NAMED.fullmatch(folder.name) or any((folder / name).is_file() for name in _FILES):
        yield folder
    elif depth:
        for child in folder.iterdir():
            if child.is_dir():
                yield from _run_directories(child, depth - 1)


def _name(directory: Path) -> str:
    return directory.resolve().parent.name


def _trained(run: Run) -> list[float]:
    return [row["train/loss"] for row in run.rows if "train/loss" in row]


def _only_tests(config: Mapping[str, Any]) -> bool:
    """Whether another command than ``fit`` wrote the directory: only these have the option ``untrained``."""
    return "untrained" in config


def _has_finished(config: Mapping[str, Any], last: Mapping[str, float]) -> bool:
    """Whether a run without a report has made all its steps: there were no test images to report on."""
    trainer = config.get("trainer", {})
    ends = {"epoch": trainer.get("max_epochs"), "step": trainer.get("max_steps")}
    return any(end and end > 0 and last.get(name, -1) + 1 >= end for name, end in ends.items())


def _protocol(reports: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for name in ("continual", "evaluation") for key, value in _part(reports, name, "protocol")}


def _part(reports: Mapping[str, Any], name: str, part: str) -> Any:
    return reports.get(name, {}).get(part, {}).items()


def _settings(config: Mapping[str, Any], named: bool = True) -> dict[str, Any]:
    """The configuration without what belongs to one run or to its reports; ``named`` replaces paths of other runs."""
    return {key: _without_seed(value) if named else value for key, value in _flat(config)}


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys as they are typed: the class of a part under its own key, its arguments below it."""
    if key in _OF_ONE_RUN or key in _REPORTING:
        return
    if isinstance(value, dict) and value:
        inside = f"{key}." if key else ""
        if "class_path" in value:
            yield key, value["class_path"]
            value = {**value.get("init_args", {}), **value.get("dict_kwargs", {})}
        for name, part in value.items():
            yield from _flat(part, f"{inside}{name}")
    else:
        yield key, None if value == NULL else value


def _without_seed(value: Any) -> Any:
    """A value that names another run becomes that run's name and settings: the teacher of each seed is its own."""
    if not isinstance(value, str) or "/" not in value or not Path(value).is_dir():
        return value
    configs = sorted(Path(value).glob("config.yaml")) or sorted(Path(value).glob("*/config.yaml"))
    if not configs:
        return value
    settings = _settings(mapping_from_yaml(text_of(configs[-1]), f"the config {configs[-1]}"), named=False)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:6]
    return f"run {_name(configs[-1].parent)} ({digest})"


def _measures(last: Mapping[str, float], reports: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float | None] = {name: value for name, value in last.items() if _MEASURES.match(name)}
    for row, columns in _part(reports, "evaluation", "accuracy"):
        prefix = "test/" if row == "trained_encoder" else f"test/{row}/"
        for column, value in columns.items():
            found[f"{prefix}{column}"] = value["mean"] if isinstance(value, dict) else value
    aware = reports.get("continual", {}).get("view") == "aware"
    if (classes := reports.get("classes")) and (not aware or _knows_the_task(classes, last)):
        found.setdefault("test/accuracy", classes["accuracy"])
        found |= {f"test/macro_{name}": value for name, value in classes["macro"].items()}
    if distillation := reports.get("distillation"):
        found["test/agreement"] = distillation["agreement"]
        found["test/teacher_accuracy"] = distillation["accuracy"]["teacher"]
        found["test/calibration_error"] = distillation["calibration_error"]["student"]["before"]
    if continual := reports.get("continual"):
        view = continual["view"]
        undefined = not says_forward_transfer(view, continual.get("scenario", "class"))  # also in earlier reports
        found |= {f"test/{name}": value for name, value in continual.get("measures", {})[view].items()}
        found |= {"test/forward_transfer": None} if undefined else {}
    return {name: value for name, value in found.items() if value is not None}


def _knows_the_task(classes: Mapping[str, Any], last: Mapping[str, float]) -> bool:
    """Whether a report of classes is of predictions that use the task; those of earlier versions do not."""
    return math.isclose(classes["accuracy"], last.get("test/accuracy", math.nan), abs_tol=1e-4)


def _cost(last: Mapping[str, float], reports: Mapping[str, Any], protocol: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, Any] = {"epochs": last["epoch"] + 1 if "epoch" in last else None, "steps": last.get("step")}
    found |= {"minutes": protocol.get("training_minutes"), "epochs": protocol.get("epochs", found["epochs"])}
    if continual := reports.get("continual"):
        cost, flops = continual["cost"], continual["cost"]["flops_per_image"]
        found["minutes"] = sum(cost["seconds"]) / 60
        found["parameters"] = cost.get("parameters")
        found["megabytes"] = megabytes(cost["bytes"])
        found["flops"] = None if not flops or None in flops else sum(flops) / len(flops)
        found["epochs"] = sum(protocol["epochs_per_task"]) if "epochs_per_task" in protocol else found["epochs"]
    if (images := protocol.get("training_images_seen")) and found["minutes"]:
        found["images_per_second"] = images / found["minutes"] / 60
    return {name: float(value) for name, value in found.items() if value is not None}
