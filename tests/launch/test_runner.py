"""A grid of runs: order, results after every run, and going on after a kill."""

import contextlib
import io
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recipes.launch import Grid, Job, KeptRuns, fit, measure, results, runner
from tests.helpers.processes import run

TWO = Grid(
    about="Two batch sizes",
    variants={"small": "--config simclr-digits --data.batch_size 32", "large": "--config simclr-digits"},
    common="--data.root <root>",
)
TAUGHT = Grid(
    variants={
        "student": "--config simclr-digits --model.teacher '<run of large net>'",
        "large net": "--config simclr-digits",
    }
)


class Runs:
    """In place of ``fit``: notes its arguments, and is interrupted after some runs."""

    def __init__(self, stop_after: int = 100) -> None:
        self.calls: list[tuple[str, int, int | None]] = []
        self.stop_after = stop_after

    def __call__(self, arguments, seed, threads=None, quiet=False, keep=None) -> dict[str, Any]:
        if len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        if keep:
            (keep / "config" / "time" / "checkpoints").mkdir(parents=True, exist_ok=True)
            (keep / "config" / "time" / "checkpoints" / "last.ckpt").touch()
        self.calls.append((" ".join(arguments), seed, threads))
        knn = 0.5 + 0.01 * seed + 0.2 * ("--data.batch_size" in arguments)
        return {
            "seed": seed,
            "accuracy": {"trained_encoder": {"knn": knn, "linear": 0.75, "knn_1_per_class": {"mean": 0.25, "std": 9}}},
            "metrics": {"val/effective_rank": 3.25},
            "steps": 40,
            "command_minutes": 1.5,
            "images_per_second": 1000.0,
            "protocol": {"epochs": 4, "training_minutes": 1.0, "run_seed": seed, "knn": {"k": 20}},
        }


@pytest.fixture
def measured(tmp_path):
    """Measures a grid with stubs in place of runs; gives the result, None if interrupted, and the calls."""

    def run(grid=TWO, name="two", seeds=(0, 1), stop_after=100, **options):
        stub = Runs(stop_after)
        options = {"others": list(tmp_path.glob("*.json")), "kept": tmp_path / "kept", "run": stub, **options}
        try:
            result = measure(grid, tmp_path / f"{name}.json", seeds, root=Path("pictures"), **options)
        except KeyboardInterrupt:
            result = None
        return result, stub.calls

    return run


def test_variants_take_turns_within_a_seed_and_get_the_folder_of_the_data(measured):
    _, calls = measured()
    small = "--config simclr-digits --data.batch_size 32 --data.root pictures"
    large = "--config simclr-digits --data.root pictures"
    assert calls == [(small, 0, None), (large, 0, None), (small, 1, None), (large, 1, None)]


def test_a_grid_that_was_interrupted_goes_on_with_the_next_run(measured, tmp_path):
    _, first = measured(stop_after=3)
    kept = json.loads((tmp_path / "two.json").read_text())
    assert [len(entry["runs"]) for entry in kept["variants"].values()] == [2, 1]
    result, rest = measured()
    whole, calls = measured(name="another", again=True)
    assert first + rest == calls
    assert result == whole == json.loads((tmp_path / "two.json").read_text())
    assert [path.name for path in tmp_path.iterdir() if path.suffix != ".json"] == []


def test_measured_runs_run_again_where_it_is_asked_for(measured):
    measured()
    assert measured()[1] == []
    _, calls = measured(only=["large"], seeds=[1], again=True)
    assert [seed for _, seed, _ in calls] == [1]


@pytest.mark.parametrize("changed", ["arguments", "config", "version"])
def test_a_run_counts_only_for_its_arguments_config_and_versions(measured, monkeypatch, tmp_path, changed):
    config = tmp_path / "mine.yaml"
    config.write_text("seed_everything: 0\n")
    grid = Grid(variants={"one": f"--config {config}", "two": f"--config {config} --compile inductor"})
    measured(grid)
    config.write_text("# a comment\nseed_everything: 0\n")
    assert measured(grid)[1] == []
    left = 4
    if changed == "arguments":
        grid, left = replace(grid, variants={**grid.variants, "one": f"--config {config} -x"}), 2
    elif changed == "config":
        config.write_text("seed_everything: 1\n")
    else:
        monkeypatch.setattr(results, "versions", lambda: {"torch": "3.0"})
    result, calls = measured(grid)
    assert len(calls) == left
    assert [len(entry["runs"]) for entry in result["variants"].values()] == [2, 2]


def test_a_grid_takes_runs_of_another_that_have_the_same_command(measured):
    measured(seeds=[0, 1, 2])
    grid = replace(TWO, variants={"plain": TWO.variants["large"], "odd": "--config simclr-digits -x"})
    result, calls = measured(grid, "second")
    assert [words.split()[2] for words, *_ in calls] == ["-x", "-x"]
    assert [[run["seed"] for run in entry["runs"]] for entry in result["variants"].values()] == [[0, 1], [0, 1]]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_others_start_from_comes_first_and_is_kept(jobs, measured):
    _, calls = measured(TAUGHT, seeds=[3], jobs=jobs)
    (large, *_), (student, *_) = calls
    assert large == "--config simclr-digits"
    folder = student.removeprefix("--config simclr-digits --model.teacher ")
    assert folder.endswith("seed-3/config")
    assert list(Path(folder).glob("*/checkpoints/last.ckpt"))
    assert measured(TAUGHT, seeds=[3])[1] == []
    shutil.rmtree(folder)
    again, only = measured(TAUGHT, seeds=[3], only=["student"], again=True)[1]  # its teacher is gone
    assert (again[0], only[0]) == (large, student)


def test_a_run_counts_only_for_the_configs_of_the_runs_that_it_starts_from(measured, tmp_path):
    config = tmp_path / "teacher.yaml"
    config.write_text("seed_everything: 0\n")
    grid = Grid(variants={**TAUGHT.variants, "large net": f"--config {config}"})
    measured(grid, seeds=[0])
    config.write_text("seed_everything: 1\n")
    assert [words.split()[1] for words, *_ in measured(grid, seeds=[0], only=["student"])[1]] == [
        str(config),
        "simclr-digits",
    ]
    assert measured(grid, seeds=[0])[1] == []


@pytest.mark.parametrize(
    ("variants", "words"),
    [
        ({"one": "--x '<run of onne>'"}, r"there is no variant 'onne' \(did you mean 'one'\?\)"),
        (
            {"one": "--x '<run of two>'", "two": "--x '<run of one>'"},
            "'one' needs its own run: one needs two needs one",
        ),
    ],
)
def test_a_grid_of_runs_that_cannot_be_is_refused(variants, words):
    with pytest.raises(ValueError, match=words):
        Grid(variants=variants)
    with pytest.raises(ValueError, match="there is no variant 'small1'"):
        TWO.jobs([0], only=["small1"])


def test_half_a_kept_run_is_no_run_to_start_from(tmp_path):
    kept = KeptRuns(TAUGHT, tmp_path)
    job = Job("large net", 0)
    folder = kept.folder(job)
    half = folder.with_name(f"{folder.name}.part") / "config" / "time" / "checkpoints"
    half.mkdir(parents=True)
    (half / "last.ckpt").touch()
    assert kept.run(job) is None
    assert kept.with_needs([Job("student", 0)]) == [job, Job("student", 0)]
    assert kept.folder(Job("student", 0)) is None


def test_runs_at_the_same_time_share_the_cores(measured, monkeypatch):
    monkeypatch.setattr(runner.os, "cpu_count", lambda: 5)
    result, calls = measured(jobs=2)
    assert [threads for *_, threads in calls] == [2] * 4
    assert result["jobs"] == [2]


def test_the_file_has_mean_and_standard_deviation_over_the_seeds(measured):
    result, _ = measured(seeds=[0, 2])
    numbers = result["variants"]["large"]["measured"]
    assert numbers["knn"] == {"mean": 0.51, "std": pytest.approx(0.02 / math.sqrt(2), abs=1e-4)}
    assert numbers["knn_1_per_class"]["mean"] == 0.25
    assert (numbers["val/effective_rank"]["mean"], numbers["steps"]["mean"], numbers["epochs"]["mean"]) == (3.25, 40, 4)
    assert (result["seeds"], result["total_minutes"]) == ([0, 2], 6.0)
    assert result["protocol"] == {"epochs": 4, "training_minutes": 1.0, "knn": {"k": 20}}  # common to all runs


def test_a_run_that_diverged_leaves_no_mean():
    assert all(math.isnan(number) for number in results.summary([1.0, math.nan]).values())
    assert results.summary([0.5]) == {"mean": 0.5, "std": 0.0}


def test_a_missing_config_is_reported_before_the_first_run(measured, tmp_path):
    grid = Grid(variants={"there": "--config simclr-digits", "not there": "--config simclr-letters"})
    with pytest.raises(FileNotFoundError, match="simclr-letters"):
        measured(grid)
    assert not list(tmp_path.iterdir())


def test_a_run_that_fails_raises_with_its_last_lines(monkeypatch):
    done = subprocess.CompletedProcess([], 2, stdout="epoch 3\n", stderr="out of memory\n")
    monkeypatch.setattr(runner.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(RuntimeError, match="epoch 3\nout of memory\nended with code 2: recipes fit .*--config mine"):
        fit(["--config", "mine"], 0, quiet=True)


def test_a_failed_run_ends_the_grid_and_the_finished_ones_count(measured, tmp_path):
    class Failing(Runs):
        def __call__(self, arguments, seed, **options):
            if seed == 1:
                raise RuntimeError("out of memory")
            return super().__call__(arguments, seed, **options)

    with pytest.raises(RuntimeError, match="out of memory"):
        measured(run=Failing())
    kept = json.loads((tmp_path / "two.json").read_text())
    assert kept["seeds"] == [0]
    assert [seed for _, seed, _ in measured()[1]] == [1, 1]


def test_a_continual_run_has_its_protocol_and_its_cost(tmp_path):
    report = {
        "protocol": {"epochs_per_task": [2, 3], "training_minutes": 1.5, "training_images_seen": 900},
        "cost": {"bytes": {"parameters": 1_000_000, "buffers": 500_000}, "flops_per_image": [10.0, 20.0]},
    }
    (tmp_path / "continual.json").write_text(json.dumps(report))
    (tmp_path / "metrics.csv").write_text("epoch,step,test/forgetting\n4,50,0.25\n")
    found = results.record(tmp_path, 3, 2.0)
    assert found["accuracy"] == {}
    assert found["protocol"] == {**report["protocol"], "epochs": 5}
    assert found["metrics"] == {"test/forgetting": 0.25, "memory_megabytes": 1.5, "flops_per_image": 20.0}
    assert (found["seed"], found["steps"], found["images_per_second"]) == (3, 50, 10.0)


LEAN = "--probe.references false --probe.labels_per_class [] --data.size 8 --pictures.points 9"


@pytest.mark.slow
def test_runs_of_no_epoch_and_of_one_epoch_have_their_numbers():
    one = f"--config supervised-digits {LEAN} --trainer.check_val_every_n_epoch 1 --trainer.max_epochs".split()
    with ThreadPoolExecutor(2) as pool:
        random, trained = pool.map(lambda epochs: fit([*one, epochs], 3, threads=1, quiet=True), ("0", "1"))
    assert (random["steps"], random["images_per_second"], random["protocol"]["epochs"]) == (0, 0.0, 0)
    assert (trained["steps"], trained["protocol"]["run_seed"]) == (9, 3)  # 1,257 images in batches of 128
    assert set(random["accuracy"]) == {"trained_encoder"}
    assert set(random["accuracy"]["trained_encoder"]) == {"knn", "linear"}
    assert 0.3 < random["accuracy"]["trained_encoder"]["knn"] < 0.95
    assert random["metrics"].keys() == {"test/accuracy"}
    assert trained["metrics"].keys() >= {"test/accuracy", "val/accuracy", "val/effective_rank", "val/feature_std"}
    assert not any("knn" in name or "linear" in name for name in trained["metrics"])


def test_a_run_without_a_report_has_what_it_logged(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,step,test/accuracy\n0,4,0.5\n")
    record = results.record(tmp_path, seed=1, minutes=2.0)
    assert results.numbers(record) == {
        "test/accuracy": 0.5, "steps": 4, "command_minutes": 2.0, "images_per_second": 0.0,
    }  # fmt: skip


def sweep(folder):
    """Trains two seeds, and returns the numbers of the runs that were to be made."""
    os.chdir(folder)
    grid = Grid(variants={"one": "--config supervised-digits"}, common=f"{LEAN} --trainer.max_epochs 1")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        measure(grid, Path("sweep.json"), seeds=[0, 1])
    return [line.split(":")[0] for line in said.getvalue().splitlines()]


def killed_sweep(folder):
    """The same, but the process and the run that it has started are killed a second after the first run."""
    os.setsid()  # a group of its own

    def kill():
        while not (folder / "sweep.json").exists():
            time.sleep(0.1)
        time.sleep(1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    sweep(folder)


@pytest.mark.slow
def test_a_grid_that_is_killed_goes_on_with_the_run_that_was_killed(tmp_path):
    assert run(killed_sweep, tmp_path) == [signal.SIGKILL]
    before = json.loads((tmp_path / "sweep.json").read_text())["variants"]["one"]["runs"]
    assert [each["seed"] for each in before] == [0]
    assert run(sweep, tmp_path) == [["1 of 1"]]
    after = json.loads((tmp_path / "sweep.json").read_text())["variants"]["one"]
    assert after["runs"][0] == before[0]
    assert [each["seed"] for each in after["runs"]] == [0, 1]
    accuracy = [each["metrics"]["test/accuracy"] for each in after["runs"]]
    expected = {"mean": statistics.mean(accuracy), "std": statistics.stdev(accuracy)}
    assert after["measured"]["test/accuracy"] == pytest.approx(expected, abs=1e-4)
