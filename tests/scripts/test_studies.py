import importlib
import json
import math
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from recipes.cli import main

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # where scripts/reproduce finds them

runs = importlib.import_module("studies.runs")
measuring = importlib.import_module("studies.measure")
studies = importlib.import_module("studies")
tables = importlib.import_module("tables")
STUDIES = studies.STUDIES

TWO = studies.Study(
    about="Two batch sizes",
    variants={"small": "--config simclr-digits --data.batch_size 32", "large": "--config simclr-digits"},
    common="--data.root <root>",
    columns=("knn", "val/effective_rank", "test/accuracy", "epochs"),
)


class Runs:
    """In place of ``recipes fit``: says what it was given, and how many runs there were."""

    def __init__(self, stop_after=100):
        self.calls, self.stop_after = [], stop_after

    def fit(self, arguments, seed, threads=None, quiet=False, keep=None):
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
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


def measured(monkeypatch, study=TWO, name="two", seeds=(0, 1), stop_after=100, **options):
    stub = Runs(stop_after)
    monkeypatch.setattr(runs, "fit", stub.fit)
    try:
        result = measuring.measure(name, study, list(seeds), root=Path("pictures"), **options)
    except KeyboardInterrupt:
        result = None
    return result, stub.calls


def test_variants_take_turns_within_a_seed_and_are_given_the_folder_of_the_data(results, monkeypatch):
    _, calls = measured(monkeypatch)
    small = "--config simclr-digits --data.batch_size 32 --data.root pictures"
    large = "--config simclr-digits --data.root pictures"
    assert calls == [(small, 0, None), (large, 0, None), (small, 1, None), (large, 1, None)]


def test_a_study_that_was_interrupted_goes_on_with_the_run_that_comes_next(results, monkeypatch):
    _, first = measured(monkeypatch, stop_after=3)
    kept = json.loads((results / "two.json").read_text())
    assert [len(entry["runs"]) for entry in kept["variants"].values()] == [2, 1]
    result, rest = measured(monkeypatch)
    whole, calls = measured(monkeypatch, name="another", again=True)
    assert first + rest == calls
    assert result == whole == json.loads((results / "two.json").read_text())
    assert [path.name for path in results.iterdir() if path.suffix != ".json"] == []


def test_what_has_been_measured_is_run_again_where_it_is_asked_for(results, monkeypatch):
    measured(monkeypatch)
    assert measured(monkeypatch)[1] == []
    _, calls = measured(monkeypatch, only=["large"], seeds=[1], again=True)
    assert [seed for _, seed, _ in calls] == [1]


@pytest.mark.parametrize("changed", ["arguments", "config", "version"])
def test_runs_of_other_arguments_another_config_or_another_version_do_not_count(results, monkeypatch, changed):
    root = results / "top"
    (root / "recipes" / "configs").mkdir(parents=True)
    config = root / "recipes" / "configs" / "simclr-digits.yaml"
    config.write_text("seed_everything: 0\n")
    monkeypatch.setattr(runs, "ROOT", root)
    measured(monkeypatch)
    config.write_text("# a comment\nseed_everything: 0\n")
    assert measured(monkeypatch)[1] == []
    study, left = TWO, 4
    if changed == "arguments":
        study, left = (
            studies.Study(**{**vars(TWO), "variants": {**TWO.variants, "small": "--config simclr-digits -x"}}),
            2,
        )
    elif changed == "config":
        config.write_text("seed_everything: 1\n")
    else:
        monkeypatch.setattr(runs, "versions", lambda: {"torch": "3.0"})
    result, calls = measured(monkeypatch, study)
    assert len(calls) == left
    assert [len(entry["runs"]) for entry in result["variants"].values()] == [2, 2]


def test_a_study_takes_the_runs_of_another_that_have_the_same_command(results, monkeypatch):
    measured(monkeypatch, seeds=[0, 1, 2])
    study = studies.Study(
        **{**vars(TWO), "variants": {"plain": TWO.variants["large"], "odd": "--config simclr-digits -x"}}
    )
    result, calls = measured(monkeypatch, study, "second")
    assert [words.split()[2] for words, *_ in calls] == ["-x", "-x"]
    assert [[run["seed"] for run in entry["runs"]] for entry in result["variants"].values()] == [[0, 1], [0, 1]]


TAUGHT = studies.Study(
    **{
        **vars(TWO),
        "variants": {
            "student": "--config simclr-digits --model.teacher '<run of large net>'",
            "large net": "--config simclr-digits",
        },
        "common": "",
    }
)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_others_start_from_comes_first_and_is_kept_for_them(jobs, results, monkeypatch):
    monkeypatch.setattr(runs, "ROOT", results)
    (results / "recipes" / "configs").mkdir(parents=True)
    (results / "recipes" / "configs" / "simclr-digits.yaml").write_text("seed_everything: 0\n")
    _, calls = measured(monkeypatch, TAUGHT, seeds=[3], jobs=jobs)
    (large, *_), (student, *_) = calls
    assert large == "--config simclr-digits"
    folder = student.removeprefix("--config simclr-digits --model.teacher ")
    assert folder.endswith("seed-3/config")
    assert list(Path(folder).glob("*/checkpoints/last.ckpt"))
    assert measured(monkeypatch, TAUGHT, seeds=[3])[1] == []
    shutil.rmtree(folder)
    again, only = measured(monkeypatch, TAUGHT, seeds=[3], only=["student"], again=True)[1]  # what it needs is gone
    assert (again[0], only[0]) == (large, student)


def test_runs_at_the_same_time_share_the_cores(results, monkeypatch):
    monkeypatch.setattr(measuring.os, "cpu_count", lambda: 5)
    result, calls = measured(monkeypatch, jobs=2)
    assert [threads for *_, threads in calls] == [2] * 4
    assert result["jobs"] == [2]


def test_the_file_has_mean_and_standard_deviation_over_the_seeds(results, monkeypatch):
    result, _ = measured(monkeypatch, seeds=[0, 2])
    numbers = result["variants"]["large"]["measured"]
    assert numbers["knn"] == {"mean": 0.51, "std": pytest.approx(0.02 / math.sqrt(2), abs=1e-4)}
    assert numbers["knn_1_per_class"]["mean"] == 0.25
    assert (numbers["val/effective_rank"]["mean"], numbers["steps"]["mean"], numbers["epochs"]["mean"]) == (3.25, 40, 4)
    assert (result["seeds"], result["total_minutes"]) == ([0, 2], 6.0)
    assert result["protocol"] == {"epochs": 4, "training_minutes": 1.0, "knn": {"k": 20}}  # what all runs share


def test_a_run_that_diverged_leaves_no_mean():
    assert all(math.isnan(number) for number in runs.summary([1.0, math.nan]).values())
    assert runs.summary([0.5]) == {"mean": 0.5, "std": 0.0}


def test_a_config_that_is_missing_is_told_before_the_first_run(results, monkeypatch):
    study = studies.Study("", {"there": "--config simclr-digits", "not there": "--config simclr-letters"})
    with pytest.raises(SystemExit, match="simclr-letters"):
        measured(monkeypatch, study)
    assert not list(results.iterdir())


def test_the_table_has_a_row_for_each_variant_and_a_dash_for_what_it_did_not_measure(results, monkeypatch):
    monkeypatch.setitem(STUDIES, "two", TWO)
    assert tables.study("two") == tables.commands("two") == ""  # nothing is measured
    measured(monkeypatch)
    measured(monkeypatch, only=["large"], seeds=[2])
    lines = tables.study("two").splitlines()
    assert lines[0] == "**Two batch sizes**"
    assert lines[2] == "|  | kNN (%) | effective rank (validation) | test accuracy (%) | epochs |"
    assert lines[4:6] == [
        "| small (2 seeds) | 70.5 ± 0.7 | 3.2 | – | 4 |",
        "| large | 51.0 ± 1.0 | 3.2 | – | 4 |",
    ]
    assert "3 seeds. kNN with k = 20" in lines[7]
    assert tables.commands("two").splitlines()[1] == (
        "- large: `recipes fit --config simclr-digits --data.root <root> --seed_everything <seed>`"
    )


def test_a_table_of_groups_has_their_columns_side_by_side_and_a_dash_where_a_row_is_not_in_a_group(
    results, monkeypatch
):
    grouped = studies.Study(
        about="Two rows in two groups",
        variants={
            "small: b": "--config simclr-digits --data.batch_size 32",
            "large: a": "--config simclr-digits",
            "large: b": "--config simclr-digits --data.size 8",
        },
        columns=("epochs",),
        groups=("a", "b"),
        of_groups=("knn", "val/effective_rank"),
    )
    monkeypatch.setitem(STUDIES, "grouped", grouped)
    measured(monkeypatch, grouped, "grouped")
    lines = tables.study("grouped").splitlines()
    titles = "a: kNN (%) | a: effective rank (validation) | b: kNN (%) | b: effective rank (validation) | epochs"
    assert lines[2] == f"|  | {titles} |"
    assert lines[4:6] == [
        "| small | – | – | 70.5 ± 0.7 | 3.2 | 4 |",
        "| large | 50.5 ± 0.7 | 3.2 | 50.5 ± 0.7 | 3.2 | 4 |",
    ]


def test_a_continual_run_says_its_protocol_and_its_cost(tmp_path):
    report = {
        "protocol": {"epochs_per_task": [2, 3], "training_minutes": 1.5},
        "cost": {"bytes": {"parameters": 1_000_000, "buffers": 500_000}, "flops_per_image": [10.0, 20.0]},
    }
    (tmp_path / "continual.json").write_text(json.dumps(report))
    accuracy, protocol, cost = runs._reported(tmp_path)
    assert accuracy == {}
    assert protocol == {"epochs_per_task": [2, 3], "training_minutes": 1.5, "epochs": 5}
    assert cost == {"memory_megabytes": 1.5, "flops_per_image": 20.0}


def test_tables_stand_between_their_markers(monkeypatch):
    monkeypatch.setitem(tables.TABLES, "some", lambda: "new\n")
    text = "before\n<!-- begin some -->\nold\n<!-- end some -->\nafter <!-- begin some -->\n<!-- end some -->"
    between = "<!-- begin some -->\nnew\n<!-- end some -->"
    assert tables.filled_in(text) == f"before\n{between}\nafter {between}"


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_has_its_table_in_the_docs_and_columns_that_a_table_knows(name):
    text = (SCRIPTS.parent / "docs" / "results.md").read_text()
    assert f"<!-- begin {name} -->\n" in text
    assert f"<!-- begin {name}-commands -->\n" in text
    assert set(STUDIES[name].columns) <= tables.COLUMNS.keys()
    wants_root = any("<root>" in STUDIES[name].arguments(variant) for variant in STUDIES[name].variants)
    assert wants_root == (STUDIES[name].root is not None)


def test_reproduce_says_what_each_study_compares():
    command = [sys.executable, SCRIPTS / "reproduce"]
    said = " ".join(subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout.split())
    assert all(" ".join((name, *study.about.split()[:4])) in said for name, study in STUDIES.items())
    said = subprocess.run([*command, "queue", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in said for option in ("--seeds", "--only", "--root", "--jobs", "--again"))


def test_a_run_without_epochs_measures_the_random_encoder_and_one_with_epochs_what_was_logged():
    lean = [
        "--probe.references",
        "false",
        "--probe.labels_per_class",
        "[]",
        "--data.size",
        "8",
        "--pictures.points",
        "9",
    ]
    one = ["--config", "supervised-digits", *lean, "--trainer.check_val_every_n_epoch", "1", "--trainer.max_epochs"]
    with ThreadPoolExecutor(2) as pool:
        random, trained = pool.map(lambda epochs: runs.fit([*one, epochs], 3, threads=1, quiet=True), ("0", "1"))
    assert (random["steps"], random["images_per_second"], random["protocol"]["epochs"]) == (0, 0.0, 0)
    assert (trained["steps"], trained["protocol"]["run_seed"]) == (9, 3)  # 1,257 images in batches of 128
    assert set(random["accuracy"]) == {"trained_encoder"}
    assert set(random["accuracy"]["trained_encoder"]) == {"knn", "linear"}
    assert 0.3 < random["accuracy"]["trained_encoder"]["knn"] < 0.95
    assert random["metrics"].keys() == {"test/accuracy"}
    assert trained["metrics"].keys() >= {"test/accuracy", "val/accuracy", "val/effective_rank", "val/feature_std"}
    assert not any("knn" in name or "linear" in name for name in trained["metrics"])


def test_a_run_that_fails_ends_the_study_with_what_it_said(monkeypatch):
    done = subprocess.CompletedProcess([], 2, stdout="epoch 3\n", stderr="out of memory\n")
    monkeypatch.setattr(runs.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SystemExit, match="epoch 3\nout of memory\nended with code 2: recipes fit --config mine"):
        runs.fit(["--config", "mine"], 0, quiet=True)


@pytest.mark.parametrize(("study", "variant"), [(name, one) for name in STUDIES for one in STUDIES[name].variants])
def test_the_arguments_of_every_variant_are_understood(study, variant, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *shlex.split(STUDIES[study].arguments(variant)), "--print_config"])
    assert stopped.value.code == 0, capsys.readouterr().err
