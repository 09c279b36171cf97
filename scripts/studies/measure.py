"""Measures a study run by run, and goes on where it was interrupted."""

import hashlib
import json
import os
import re
import shlex
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import yaml

from recipes.cli.catalogue import config_file
from studies import Study, runs

Job = tuple[str, int]  # a variant and a seed
Found = dict[str, dict[int, dict[str, Any]]]  # by variant and seed


def measure(
    name: str,
    study: Study,
    seeds: list[int],
    only: list[str] | None = None,
    root: Path | None = None,
    jobs: int = 1,
    again: bool = False,
) -> dict[str, Any]:
    """Runs what results/<name>.json does not have yet, and writes that file after every run.

    A run counts as measured if the same command with the same seed, configuration and versions is in the JSON of any
    study. Whoever changes the code of a recipe asks for it ``again``.

    Args:
        name: of the study.
        study: what is compared.
        seeds: the outer loop: variants take turns, so that a busy machine is busy for all.
        only: variants to run; None runs all.
        root: folder of the data.
        jobs: how many runs at a time, which share the CPU cores.
        again: also runs what has been measured.

    Returns:
        What was written.
    """
    path = runs.RESULTS / f"{name}.json"
    found = _measured_before(study, seeds, path)
    variants = only or list(study.variants)
    todo = [(variant, seed) for seed in seeds for variant in variants if again or seed not in found[variant]]
    for variant in variants:
        _configuration(study.arguments(variant))  # a config that is missing is told before the first run
    kept = Kept(study)
    todo = kept.with_what_is_needed(todo)
    pool = ThreadPoolExecutor(jobs)
    try:
        futures: dict[Future[dict[str, Any]], Job] = {}
        for variant, seed in todo:  # those that others start from come first, and so no other waits for one behind it
            first = [future for future, job in futures.items() if job in [(n, seed) for n in study.needs(variant)]]
            futures[pool.submit(_run, study, (variant, seed), first, kept, root, jobs)] = variant, seed
        for number, future in enumerate(as_completed(futures), 1):
            variant, seed = futures[future]
            found[variant][seed] = run = future.result()
            runs.write(path, _result(study, found))
            print(f"{number} of {len(todo)}: {variant}, seed {seed}: {_told(run)}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # when a run failed or Ctrl-C was pressed, no other begins
    result = _result(study, found)
    runs.write(path, result)  # also where there was nothing to run
    return result


class Kept:
    """The runs that others start from, in folders that outlast them and that belong to their command.

    Args:
        study: whose variants they are.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        needed = [name for variant in study.variants for name in study.needs(variant)]
        self.names = list(dict.fromkeys([*needed, *study.kept]))

    def folder(self, variant: str, seed: int) -> Path | None:
        """Where the run of a variant is kept; None where no other starts from it."""
        if variant not in self.names:
            return None
        command = hashlib.sha256(self.study.arguments(variant).encode()).hexdigest()[:12]
        return runs.ROOT / "runs" / "studies" / command / f"seed-{seed}"

    def with_what_is_needed(self, todo: list[Job]) -> list[Job]:
        """What is to be run, and before it the runs that it starts from and that are gone."""
        ordered: list[Job] = []

        def add(job: Job) -> None:
            variant, seed = job
            for name in self.study.needs(variant):
                folder = self.folder(name, seed)
                if (name, seed) in todo or not (folder and any(folder.glob("*/*/checkpoints/last.ckpt"))):
                    add((name, seed))
            if job not in ordered:
                ordered.append(job)

        for job in sorted(todo, key=lambda job: job[0] not in self.names):  # stable
            add(job)
        return ordered

    def filled_in(self, word: str, seed: int) -> str:
        """A word of the arguments, with the folders of the runs that it names."""
        for name in self.names:
            if f"<run of {name}>" in word and (folder := self.folder(name, seed)):
                (run,) = folder.iterdir()
                word = word.replace(f"<run of {name}>", str(run))
        return word


def _run(
    study: Study, job: Job, first: list[Future[dict[str, Any]]], kept: Kept, root: Path | None, jobs: int
) -> dict[str, Any]:
    for future in first:
        future.result()
    variant, seed = job
    arguments = study.arguments(variant)
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    made_with = {"configuration": _configuration(arguments), "jobs": jobs, "machine": runs.machine()}
    words = [kept.filled_in(word.replace("<root>", str(root)), seed) for word in _words(arguments)]
    folder = kept.folder(variant, seed)
    return {**runs.fit(words, seed, threads, quiet=True, **({"keep": folder} if folder else {})), **made_with}


def _words(arguments: str) -> list[str]:
    """Those of the arguments; what stands in angle brackets is one."""
    return [
        word.replace("\0", " ") for word in shlex.split(re.sub("<.+?>", lambda m: m[0].replace(" ", "\0"), arguments))
    ]


def _measured_before(study: Study, seeds: list[int], path: Path) -> Found:
    """The runs of this study, and those of these seeds that another study has made."""
    found: Found = {variant: {} for variant in study.variants}
    variants = {_command(study, variant): variant for variant in study.variants}
    versions = runs.versions()
    for file in sorted(runs.RESULTS.glob("*.json"), key=lambda file: file == path):  # its own last: they count
        result = json.loads(file.read_text())
        if result.get("versions") != versions:
            continue
        for entry in result.get("variants", {}).values():
            if variant := variants.get(entry["command"]):
                configuration = _configuration(study.arguments(variant))
                for run in entry["runs"]:
                    if run["configuration"] == configuration and (file == path or run["seed"] in seeds):
                        found[variant][run["seed"]] = run
    return found


def _result(study: Study, found: Found) -> dict[str, Any]:
    variants: dict[str, dict[str, Any]] = {
        variant: {
            "command": _command(study, variant),
            "measured": _summaries([by_seed[seed] for seed in sorted(by_seed)]),
            "runs": [by_seed[seed] for seed in sorted(by_seed)],
        }
        for variant, by_seed in found.items()
        if by_seed
    }
    every = [run for variant in variants.values() for run in variant["runs"]]
    protocols = [run["protocol"] for run in every]
    return {
        "about": study.about,
        "seeds": sorted({run["seed"] for run in every}),
        "protocol": {
            key: value
            for key, value in (protocols[0] if protocols else {}).items()
            if all(protocol.get(key) == value for protocol in protocols)
        },
        "total_minutes": round(sum(run["command_minutes"] for run in every), 1),
        "machine": " and ".join(sorted({run["machine"] for run in every})),
        "jobs": sorted({run["jobs"] for run in every}),
        "versions": runs.versions(),
        "variants": variants,
    }


def _summaries(same: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over the seeds of each number that all runs have."""
    numbers = [_numbers(run) for run in same]
    return {
        name: runs.summary([each[name] for each in numbers])
        for name in numbers[0]
        if all(name in each for each in numbers)
    }


def _numbers(run: dict[str, Any]) -> dict[str, float]:
    """All that a run measured; with few labels, the mean over their draws."""
    accuracy = run["accuracy"].get("trained_encoder", {})
    return {
        **{name: value["mean"] if isinstance(value, dict) else value for name, value in accuracy.items()},
        **run["metrics"],
        "epochs": run["protocol"]["epochs"],
        "steps": run["steps"],
        "training_minutes": run["protocol"]["training_minutes"],
        "command_minutes": run["command_minutes"],
        "images_per_second": run["images_per_second"],
    }


def _told(run: dict[str, Any]) -> str:
    numbers = _numbers(run)
    return ", ".join(
        f"{name} {numbers[name]:.4g}"
        for name in ("knn", "linear", *run["metrics"], "command_minutes")
        if name in numbers
    )


def _command(study: Study, variant: str) -> str:
    return f"recipes fit {study.arguments(variant)} --seed_everything <seed>"


def _configuration(arguments: str) -> str:
    """A digest of what is in the configs that the arguments name, without comments."""
    words = shlex.split(arguments)
    names = [value for option, value in zip(words, words[1:]) if option == "--config"]
    try:
        content = json.dumps([yaml.safe_load(config_file(name).read_text()) for name in names], sort_keys=True)
    except FileNotFoundError as error:
        raise SystemExit(f"{error}, which a study names: {arguments}") from None
    return hashlib.sha256(content.encode()).hexdigest()[:12]
