"""The tables of README and docs, from the JSON files in results/ and from the recipes themselves."""

import importlib
import inspect
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import PARTS
from studies import RESULTS, ROOT, STUDIES, Study, mythical, quadrants

from recipes.evaluation.text_tables import cell, markdown

FILES = (ROOT / "README.md", *(ROOT / "docs" / f"{page}.md" for page in ("results", "speed", "exactness")))

# What a study may show: title, factor and decimals; without decimals there is no standard deviation. Forward transfer
# is left out: files of earlier versions have it for the scenario class too, where it says nothing.
COLUMNS = {
    "knn": ("kNN (%)", 100, 1),
    "linear": ("linear (%)", 100, 1),
    "test/accuracy": ("test accuracy (%)", 100, 1),
    "test/student_accuracy": ("of the student (%)", 100, 1),
    "test/agreement": ("agrees with its teacher (%)", 100, 1),
    "test/calibration_error": ("calibration error (%)", 100, 1),
    "test/average_accuracy": ("average accuracy (%)", 100, 1),
    "test/forgetting": ("forgetting (%)", 100, 1),
    "test/backward_transfer": ("backward transfer (%)", 100, 1),
    "test/task_1": ("old task (%)", 100, 1),
    "test/task_2": ("new task (%)", 100, 1),
    "memory_megabytes": ("memory (MB)", 1, 1),
    "flops_per_image": ("MFLOP per image", 1e-6, 1),
    "val/effective_rank": ("effective rank (validation)", 1, 1),
    "val/feature_std": ("feature std (validation)", 1, 2),
    "train/projection_std": ("projection std (training)", 1, 2),
    "training_minutes": ("minutes", 1, 1),
    "images_per_second": ("images/s", 1, 0),
    "epochs": ("epochs", 1, 0),
    "steps": ("steps", 1, 0),
}

# (Authors, year, arXiv:number; v2: number), of which only authors and year have to be there
_CITATION = r"\(([^();]*\b(?:19|20)\d\d)(?:, arXiv:([\d.]+\d))?(?:; (\w+): ([\d.]+\d))?\)"
_MARKED = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end \2 -->)", re.S)


def filled_in(text: str) -> str:
    """A text with the table of each ``<!-- begin name -->`` up to its ``<!-- end name -->``."""
    return _MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def study(name: str) -> str:
    """The table of a study; nothing before it is measured."""
    result = _result(name)
    if not result:
        return ""
    declared, variants = STUDIES[name], result["variants"]
    most = max(len(entry["runs"]) for entry in variants.values())
    title, rows = (_grouped if declared.groups else _ungrouped)(declared, variants, most)
    protocol = result["protocol"]
    probes = ""
    if "knn" in declared.columns:
        probes = f"kNN with k = {protocol['knn']['k']}, linear: logistic regression, on frozen features. "
    jobs = "" if result["jobs"] == [1] else f", {' or '.join(map(str, result['jobs']))} runs at a time"
    return (
        f"**{declared.about}**\n\n"
        + markdown(["", *title], rows)
        + f"\nOn the test images, mean ± standard deviation over {most} seed{'s' * (most > 1)}. {probes}"
        f"{result['total_minutes']:.0f} minutes in all on {', '.join(result['machine'].split(', ')[1:])}{jobs}: "
        f"`scripts/reproduce {name}`.\n"
    )


def _ungrouped(study: Study, variants: dict[str, Any], most: int) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table with a row for each variant."""
    columns = [COLUMNS[column] for column in study.columns]
    rows = []
    for variant in study.variants:
        if entry := variants.get(variant):
            runs = len(entry["runs"])
            label = variant if runs == most else f"{variant} ({runs} seed{'s' * (runs > 1)})"
            rows.append([label, *_cells(entry, study.columns)])
    return [title for title, *_ in columns], rows


def _grouped(study: Study, variants: dict[str, Any], most: int) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table with columns for each group; a dash where a row has no variant in a group."""
    titles = [f"{group}: {COLUMNS[column][0]}" for group in study.groups for column in study.of_groups]
    rows = []
    for row in dict.fromkeys(variant.split(": ")[0] for variant in study.variants):
        entries = [variants.get(f"{row}: {group}") for group in study.groups]
        if any(entries):
            cells = [_cells(entry, study.of_groups) if entry else ["–"] * len(study.of_groups) for entry in entries]
            first = next(entry for entry in entries if entry)
            rows.append([row, *(cell for of_group in cells for cell in of_group), *_cells(first, study.columns)])
    return [*titles, *(COLUMNS[column][0] for column in study.columns)], rows


def _cells(entry: dict[str, Any], columns: tuple[str, ...]) -> list[str]:
    return [cell(entry["measured"].get(column), *COLUMNS[column][1:]) for column in columns]


def commands(name: str) -> str:
    """The command of each variant of a study; nothing before it is measured."""
    variants = (_result(name) or {}).get("variants", {})
    return "".join(f"- {variant}: `{entry['command']}`\n" for variant, entry in variants.items())


def accuracies(name: str, title: str) -> str:
    """The table of one config: all probes, with what the trained encoder is compared with."""
    result = _result(name)
    if not result:
        return ""
    columns = ["knn_1_per_class", "knn_5_per_class", "knn", "linear_1_per_class", "linear_5_per_class", "linear"]
    rows = [
        [row.replace("_", " "), *(cell(accuracy[column], 100, 1) for column in columns)]
        for row, accuracy in result["accuracy"].items()
    ]
    protocol = result["protocol"]
    seeds, minutes = len(result["seeds"]), result["training_minutes"]["mean"]
    return (
        f"**{title}**: test accuracy (%) of frozen features, `{result['command']}`\n\n"
        + markdown(["", "kNN, 1 label per class", "5", "all", "linear, 1 label per class", "5", "all"], rows)
        + f"\nMean ± standard deviation over {seeds} seeds; few labels: each a mean over "
        f"{protocol['few_labels']['draws']} draws of the labels. kNN with k = {protocol['knn']['k']}; "
        f"{protocol['epochs']} epochs, {minutes:.1f} minutes of training on {result['machine'].split(', ')[1]}, "
        f"{result['images_per_second']['mean']:,.0f} images/s.\n"
    )


def benchmarks() -> str:
    """The lines of every part of scripts/benchmark that has been measured."""
    rows = []
    for name in PARTS:
        part: Any = importlib.import_module(f"benchmarks.{name}")
        if result := _result(f"benchmark-{name.replace('_', '-')}"):
            rows += part.rows(result)
    return "**Speed and memory**, each measured in turns with what it is compared with\n\n" + markdown(
        ["what", "compared with", "median"], rows
    )


def exactness() -> str:
    """Differences from an uninterrupted run on one process: on other devices, with workers, after a kill."""
    result = _result("exactness")
    if not result:
        return ""
    protocol, differences = result["protocol"], result["largest_relative_difference"]
    columns = {
        "two_processes": "two processes",
        "kill_and_resume": "with two workers, killed, resumed without",
        "resume_on_two": "resumed on two processes",
        "resume_on_one": "on two processes, resumed on one",
    }
    rows = [
        [f"`{name}`", *(f"{row[column]:.0e}" if row[column] else "same bits" for column in columns)]
        for name, row in differences.items()
    ]
    return (
        "**One run is one result**: difference between the final state of each run and that of an uninterrupted run on "
        "one process\n\n"
        + markdown(["", *columns.values()], rows)
        + f"\n{protocol['steps']} steps of {protocol['batches_of_a_step']} batches, of the whole command in "
        f"{protocol['precision']}. Runs are resumed within an epoch, after SIGKILL or from a checkpoint that was kept "
        "there. Each number is the largest difference over all weights, buffers, optimiser states and logged metrics, "
        "relative to the largest magnitude of the tensor.\n"
    )


def of(name: str, table: Callable[[dict[str, Any]], str]) -> str:
    """The table of a measurement that has its own form; nothing before it is measured."""
    return table(result) if (result := _result(name)) else ""


def catalogue() -> str:
    """Every recipe: the first line of its docstring, its papers, and its configs that need no download."""
    import recipes
    from recipes.cli.catalogue import config_file, config_names, recipe_names

    texts = {name: config_file(name).read_text() for name in config_names() if name.endswith("-digits")}
    offline = {"Digits", "SemiSupervised", "Subset", "TaskSequence"}
    texts = {name: text for name, text in texts.items() if set(re.findall(r"datamodules\.(\w+)", text)) <= offline}
    rows = []
    for recipe in sorted((getattr(recipes, name) for name in recipe_names()), key=inspect.getfile):
        doc = inspect.getdoc(recipe) or ""
        line, name = doc.splitlines()[0], recipe.__name__
        what = re.sub(f" ?{_CITATION}", "", line).rstrip(".").replace("``", "`")
        papers = [_paper(*found, doc) for found in re.findall(_CITATION, line)]
        path = Path(inspect.getfile(recipe)).relative_to(ROOT)
        configs = [f"`{config}`" for config, text in texts.items() if f"class_path: recipes.{name}\n" in text]
        rows.append([f"[`{name}`]({path})", what, ", ".join(papers), ", ".join(configs)])
    return markdown(["recipe", "what it does", "paper", "config"], rows)


def _paper(cited: str, number: str, version: str, second: str, doc: str) -> str:
    """A citation, linked if its number on arXiv stands there or elsewhere in the docstring."""
    elsewhere = re.search(rf"{re.escape(cited)}, arXiv:([\d.]+\d)", doc)
    number = number or (elsewhere[1] if elsewhere else "")
    papers = {cited: number, version: second}
    return ", ".join(f"[{name}](https://arxiv.org/abs/{n})" if n else name for name, n in papers.items() if name)


TABLES: dict[str, Callable[[], str]] = {
    "recipes": catalogue,
    "simclr-digits": partial(accuracies, "simclr-digits", "Digits (1,257 training and 360 test images)"),
    "simclr-cifar10-jpeg": partial(accuracies, "simclr-cifar10-jpeg", "CIFAR-10 (JPEG), ResNet-20"),
    "simclr-fashionmnist": partial(accuracies, "simclr-fashionmnist", "Fashion-MNIST, ResNet-20"),
    "benchmarks": benchmarks,
    "exactness": exactness,
    "quadrants": partial(of, "quadrants", partial(quadrants.table, quadrants.PAIRS, "The four quadrants")),
    "quadrants-unseen": partial(
        of, "quadrants", partial(quadrants.table, quadrants.UNSEEN, "Pairs that the rule was not chosen on")
    ),
    "mythical": partial(of, "mythical", mythical.table),
    **{name: partial(study, name) for name in STUDIES},
    **{f"{name}-commands": partial(commands, name) for name in STUDIES},
}


def _result(name: str) -> Any:
    """What was measured, or None."""
    path: Path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None
