"""Runs a grid: several runs at a time, results written after every run, finished runs skipped after a kill."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from recipes.launch import results
from recipes.launch.grid import Grid, Job
from recipes.launch.results import Record

Fit = Callable[..., Record]
KEPT = Path("runs") / "kept"


def measure(
    grid: Grid,
    path: Path,
    seeds: Sequence[int] = (0, 1, 2),
    only: Sequence[str] | None = None,
    *,
    root: Path | None = None,
    jobs: int = 1,
    again: bool = False,
    others: Sequence[Path] = (),
    kept: Path = KEPT,
    run: Fit | None = None,
) -> dict[str, Any]:
    """Runs what is missing in a JSON file, and writes the file after every run.

    A run counts as measured if the file has the same command with the same seed, content of the configs (its own, and
    those of the runs that it starts from) and versions of the packages. After a change of a recipe's code or of the
    images, ask for it ``again``. A run that is killed does not count: the next call starts it anew.

    Args:
        grid: the variants.
        path: JSON file of the results.
        seeds: of the runs. The seed is the outer loop.
        only: variants to run; if None, all variants.
        root: replaces ``<root>`` in the arguments.
        jobs: number of runs at a time, > 0. They share the CPU cores.
        again: runs also what has been measured.
        others: JSON files of other grids, whose runs count if the command is the same.
        kept: folder of the runs that other runs start from.
        run: makes one run and returns its numbers; if None, ``fit``.

    Returns:
        The content of the file.

    Raises:
        FileNotFoundError: if a variant names a config that does not exist; raised before the first run.
        RuntimeError: if a run fails. Runs that are in progress finish and count, others do not start.
    """
    make = run or fit
    todo = grid.jobs(seeds, only)
    for variant, _ in todo:
        grid.configuration(variant)  # a missing config is reported before the first run
    found = results.measured_before(grid, seeds, path, others)
    keeping = KeptRuns(grid, kept)
    todo = keeping.with_needs([job for job in todo if again or job not in found])
    pool = ThreadPoolExecutor(jobs)
    try:
        futures: dict[Job, Future[Record]] = {}
        for job in todo:  # a job stands behind those that it needs, so waiting for them cannot block the pool
            first = [futures[need] for name in grid.needs(job.variant) if (need := Job(name, job.seed)) in futures]
            futures[job] = pool.submit(_run, make, grid, job, first, keeping, root, jobs)
        by_future = {future: job for job, future in futures.items()}
        for number, future in enumerate(as_completed(by_future), 1):
            job = by_future[future]
            found[job] = future.result()
            results.write(path, results.whole(grid, found))
            said = results.one_line(found[job])
            print(f"{number} of {len(todo)}: {job.variant}, seed {job.seed}: {said}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)  # after a failure or Ctrl-C no other run starts
    result = results.whole(grid, found)
    results.write(path, result)  # also if nothing was to be run
    return result


def fit(
    arguments: Sequence[str],
    seed: int,
    threads: int | None = None,
    quiet: bool = False,
    keep: Path | None = None,
    cwd: Path | None = None,
) -> Record:
    """Runs ``recipes fit`` in a process of its own and returns its numbers.

    Args:
        arguments: of ``recipes fit``.
        seed: of the run.
        threads: number of CPU threads; if None, torch chooses.
        quiet: shows the output of the run only if it fails.
        keep: folder for the run, replaced once the run has finished; if None, the run is deleted.
        cwd: working directory; if None, the current one.

    Raises:
        RuntimeError: if the run fails; the message has its last 20 lines and its command.
    """
    with tempfile.TemporaryDirectory() as folder:
        # a kept run gets its name when it has finished, so that no other run starts from half of one
        runs = keep.with_name(f"{keep.name}.part") if keep else Path(folder)
        shutil.rmtree(runs, ignore_errors=True)
        runs.mkdir(parents=True)
        # in full, so that the numbers of all runs are of one protocol
        words = ["--probe.max_share=null", *arguments, "--seed_everything", str(seed), "--runs", str(runs.resolve())]
        command = [sys.executable, "-m", "recipes", "fit", *words]
        environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
        start = time.perf_counter()
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=quiet, text=True)
        minutes = (time.perf_counter() - start) / 60
        if done.returncode:
            said = "\n".join(((done.stdout or "") + (done.stderr or "")).splitlines()[-20:])
            raise RuntimeError(f"{said}\nended with code {done.returncode}: {' '.join(command[2:])}")
        (directory,) = (path.parent for path in runs.glob("*/*/metrics.csv"))
        record = results.record(directory, seed, minutes)
        if keep:
            shutil.rmtree(keep, ignore_errors=True)
            runs.rename(keep)
    return record


class KeptRuns:
    """The runs of a grid that other runs start from, each in a folder that belongs to its command and seed.

    Args:
        grid: of the runs.
        folder: for all kept runs.
    """

    def __init__(self, grid: Grid, folder: Path = KEPT) -> None:
        self.grid = grid
        self.root = folder
        self.names = grid.kept_variants()

    def folder(self, job: Job) -> Path | None:
        """Returns the folder of a run; None if the run is not kept."""
        if job.variant not in self.names:
            return None
        key = self.grid.arguments(job.variant), self.grid.configuration(job.variant), self.grid.needed(job.variant)
        return self.root / hashlib.sha256(repr(key).encode()).hexdigest()[:12] / f"seed-{job.seed}"

    def run(self, job: Job) -> Path | None:
        """Returns the directory that holds the run, as the arguments of other runs name it; None if there is none."""
        folder = self.folder(job)
        if folder is None or not any(folder.glob("*/*/checkpoints/last.ckpt")):
            return None
        return next(folder.iterdir())

    def with_needs(self, todo: Sequence[Job]) -> list[Job]:
        """Puts every run behind those that it starts from, and adds those that are neither listed nor kept."""
        ordered: list[Job] = []

        def add(job: Job) -> None:
            for name in self.grid.needs(job.variant):
                need = Job(name, job.seed)
                if need in todo or not self.run(need):
                    add(need)
            if job not in ordered:
                ordered.append(job)

        for job in sorted(todo, key=lambda job: job.variant not in self.names):  # stable
            add(job)
        return ordered

    def filled_in(self, word: str, seed: int) -> str:
        """Replaces every ``<run of NAME>`` in a word of the arguments by the directory of that run."""
        for name in self.names:
            if f"<run of {name}>" in word and (run := self.run(Job(name, seed))):
                word = word.replace(f"<run of {name}>", str(run.resolve()))
        return word


def _run(
    make: Fit, grid: Grid, job: Job, first: Sequence[Future[Record]], keeping: KeptRuns, root: Path | None, jobs: int
) -> Record:
    for future in first:
        future.result()
    threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None
    made_with = {"configuration": grid.configuration(job.variant), "jobs": jobs, "machine": results.machine()}
    if needed := grid.needed(job.variant):
        made_with["needed"] = needed
    words = [
        keeping.filled_in(word.replace("<root>", str(root)), job.seed) for word in _words(grid.arguments(job.variant))
    ]
    return {**make(words, job.seed, threads=threads, quiet=True, keep=keeping.folder(job)), **made_with}


def _words(arguments: str) -> list[str]:
    """The words of the arguments; angle brackets and the text between them are one word."""
    joined = re.sub("<.+?>", lambda found: found[0].replace(" ", "\0"), arguments)
    return [word.replace("\0", " ") for word in shlex.split(joined)]
