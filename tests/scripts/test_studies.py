import importlib
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from recipes.cli import main

SCRIPTS = Path(__file__).parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))  # where scripts/reproduce finds them

studies = importlib.import_module("studies")
tables = importlib.import_module("tables")
STUDIES = studies.STUDIES

TWO = studies.Study(
    about="Two batch sizes",
    variants={"small": "--config simclr-digits --data.batch_size 32", "large": "--config simclr-digits"},
    common="--data.root <root>",
    columns=("knn", "val/effective_rank", "test/accuracy", "epochs"),
)


def run(arguments, seed, **options):
    """In place of ``recipes fit``."""
    knn = 0.5 + 0.01 * seed + 0.2 * ("--data.batch_size" in arguments)
    return {
        "seed": seed,
        "accuracy": {"trained_encoder": {"knn": knn, "linear": 0.75}},
        "metrics": {"val/effective_rank": 3.25},
        "steps": 40,
        "command_minutes": 1.5,
        "images_per_second": 1000.0,
        "protocol": {"epochs": 4, "training_minutes": 1.0, "run_seed": seed, "knn": {"k": 20}},
    }


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Measures a study with stubs in place of runs, in a folder of results of its own."""
    monkeypatch.setattr(importlib.import_module("studies.base"), "RESULTS", tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    def measure(study=TWO, name="two", seeds=(0, 1), **options):
        monkeypatch.setitem(STUDIES, name, study)
        return studies.measure_study(name, study, seeds, **{"run": run, **options})

    return measure


def test_a_study_takes_the_runs_of_another_study(measured, tmp_path):
    measured()
    result = measured(TWO, "other", run=None, only=["large"])  # nothing is left to be run
    assert [run["seed"] for run in result["variants"]["large"]["runs"]] == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "two.json"]


def test_the_table_has_a_row_for_each_variant_and_a_dash_for_what_it_did_not_measure(measured, monkeypatch):
    monkeypatch.setitem(STUDIES, "two", TWO)
    assert tables.study("two") == tables.commands("two") == ""  # nothing is measured
    measured()
    measured(only=["large"], seeds=[2])
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


def test_a_table_of_groups_has_columns_side_by_side_and_a_dash_for_a_missing_row(
    measured,
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
    measured(grouped, "grouped")
    lines = tables.study("grouped").splitlines()
    titles = "a: kNN (%) | a: effective rank (validation) | b: kNN (%) | b: effective rank (validation) | epochs"
    assert lines[2] == f"|  | {titles} |"
    assert lines[4:6] == [
        "| small | – | – | 70.5 ± 0.7 | 3.2 | 4 |",
        "| large | 50.5 ± 0.7 | 3.2 | 50.5 ± 0.7 | 3.2 | 4 |",
    ]


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
    assert {*STUDIES[name].columns, *STUDIES[name].of_groups} <= tables.COLUMNS.keys()
    assert "test/forward_transfer" not in tables.COLUMNS  # in files of earlier versions, it often says nothing
    wants_root = any("<root>" in STUDIES[name].arguments(variant) for variant in STUDIES[name].variants)
    assert wants_root == (STUDIES[name].root is not None)


@pytest.mark.slow
def test_reproduce_says_what_each_study_compares():
    command = [sys.executable, SCRIPTS / "reproduce"]
    said = " ".join(subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout.split())
    assert all(" ".join((name, *study.about.split()[:4])) in said for name, study in STUDIES.items())
    said = subprocess.run([*command, "queue", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in said for option in ("--seeds", "--only", "--root", "--jobs", "--again"))


@pytest.mark.slow
@pytest.mark.parametrize(("study", "variant"), [(name, one) for name in STUDIES for one in STUDIES[name].variants])
def test_the_arguments_of_every_variant_are_understood(study, variant, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", *shlex.split(STUDIES[study].arguments(variant)), "--print_config"])
    assert stopped.value.code == 0, capsys.readouterr().err
