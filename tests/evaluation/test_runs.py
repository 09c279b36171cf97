"""Run directories are read, and what is left out is named."""

from pathlib import Path
from typing import Any

import pytest

from recipes.evaluation.runs import alike, find_runs, last_values, read_metrics, read_run
from tests.helpers.written_runs import evaluation, matrix, write_run

ROWS = [
    {"epoch": 0, "step": 9, "train/loss": 3.5, "train/grad_norm": 1.0},
    {"epoch": 3, "step": 39, "train/loss": 2.5},
    {"epoch": 3, "step": 39, "val/knn": 0.75},
]


def write(folder: Path, name: str = "simclr", seed: int = 0, **options: Any) -> Path:
    return write_run(folder, name, seed, **{"evaluation": evaluation(0.9, seed), "rows": ROWS, **options})


def names(runs: Any) -> list[str]:
    return [f"{run.name}/{run.directory.name}" for run in runs]


def test_a_run_has_the_last_logged_values_and_those_of_its_reports(tmp_path: Path) -> None:
    classes = {"accuracy": 0.5, "images": 360, "macro": {"precision": None, "recall": 0.25, "f1": 0.125}}
    errors = {"student": {"before": 0.0625, "after": None}}
    distillation = {"agreement": 0.75, "accuracy": {"teacher": 1.0, "student": 0.5}, "calibration_error": errors}
    run = read_run(write(tmp_path, classes=classes, distillation=distillation))
    assert (run.name, run.recipe, run.seed) == ("simclr", "SimCLR", 0)
    assert run.measures == {
        "train/loss": 2.5, "val/knn": 0.75, "test/knn": 0.9, "test/knn_1_per_class": 0.45, "test/accuracy": 0.5,
        "test/macro_recall": 0.25, "test/macro_f1": 0.125, "test/agreement": 0.75, "test/teacher_accuracy": 1.0,
        "test/calibration_error": 0.0625,
    }  # fmt: skip
    assert run.cost == {"minutes": 2.0, "epochs": 4, "steps": 39, "images_per_second": 100.0}


def test_a_continual_run_has_the_measures_of_its_view_and_its_cost(tmp_path: Path) -> None:
    report = {
        "recipe": "LwF", "view": "agnostic", "matrix": {"agnostic": matrix(0)},
        "scenario": "class",
        "measures": {"aware": {"forgetting": 0.5}, "agnostic": {"forgetting": 0.25, "forward_transfer": -0.07}},
        "cost": {
            "seconds": [30.0, 60.0], "flops_per_image": [2e6, 4e6], "parameters": 1000,
            "bytes": {"parameters": 3_000_000, "buffers": 500_000, "data": 1_000_000},
        },
        "protocol": {"seed": 4, "epochs_per_task": [2, 3], "training_images_seen": 900},
    }  # fmt: skip
    rows = [{"epoch": 4, "test/forward_transfer": -0.07}]  # as earlier versions wrote
    run = read_run(write_run(tmp_path, "lwf", 4, continual=report, rows=rows))
    assert run.measures == {"test/forgetting": 0.25}
    assert run.cost == {
        "minutes": 1.5, "epochs": 5, "parameters": 1000, "megabytes": 4.5, "flops": 3e6, "images_per_second": 10.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("view", "of_classes", "macro"),
    [("aware", 0.25, False), ("aware", 0.75, True), ("agnostic", 0.25, True)],  # earlier versions: without the task
)
def test_an_accuracy_is_the_logged_one_and_scores_by_class_are_of_its_view(
    view: str, of_classes: float, macro: bool, tmp_path: Path
) -> None:
    classes = {"accuracy": of_classes, "images": 360, "macro": {"precision": 0.5, "recall": 0.5, "f1": 0.5}}
    continual = {
        "recipe": "LwF", "view": view, "measures": {view: {}},
        "cost": {"seconds": [], "flops_per_image": [], "bytes": {"parameters": 0, "buffers": 0}}, "protocol": {},
    }  # fmt: skip
    rows = [{"epoch": 0, "step": 9, "test/accuracy": 0.75}]
    run = read_run(write_run(tmp_path, "lwf", 0, continual=continual, classes=classes, rows=rows))
    assert run.measures["test/accuracy"] == 0.75
    assert ("test/macro_f1" in run.measures) == macro


def test_settings_have_dotted_keys_without_what_belongs_to_one_run(tmp_path: Path) -> None:
    encoder = {"class_path": "recipes.nn.ConvNet", "init_args": {"widths": [8, 16]}}
    model = {"class_path": "recipes.SimCLR", "init_args": {"encoder": encoder, "temperature": 0.5}}
    settings = {"model": model, "pictures": {"points": 9}, "trainer": {"max_epochs": 4}}
    assert read_run(write(tmp_path, settings=settings)).settings == {
        "model": "recipes.SimCLR",
        "model.encoder": "recipes.nn.ConvNet",
        "model.encoder.widths": [8, 16],
        "model.temperature": 0.5,
        "trainer.max_epochs": 4,
    }


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_runs_are_found_in_folders_of_any_natural_depth(depth: int, tmp_path: Path) -> None:
    directory = write(tmp_path / "runs", seed=1)
    (tmp_path / "runs" / "teacher-logits").mkdir()
    given = [directory, directory.parent, tmp_path / "runs"][depth]
    runs, notes = find_runs([given, directory])  # given twice, it counts once
    assert names(runs) == ["simclr/2026-01-01_00-00-00"]
    assert not notes


def test_runs_that_have_not_finished_are_left_out_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    trainer = {"trainer": {"max_epochs": 8}}
    unfinished = write_run(tmp_path, "simclr", 1, "2026-01-01_00-00-01", trainer, ROWS)
    empty = tmp_path / "byol" / "2026-01-01_00-00-00"
    empty.mkdir(parents=True)
    half = write(tmp_path, "moco")
    (half / "evaluation.json").write_text('{"accuracy": ')
    runs, notes = find_runs([tmp_path])
    assert names(runs) == ["simclr/2026-01-01_00-00-00"]
    reason = "it has no report: it has not finished, has failed or had no test images."
    assert notes == [
        f"{empty} is left out: {reason}",
        f"{half} is left out: its evaluation.json is not complete JSON.",
        f"{unfinished} is left out: {reason}",
    ]


@pytest.mark.parametrize(
    ("file", "text"),
    [("config.yaml", "a: [1"), ("config.yaml", "- 1"), ("evaluation.json", "[]"), ("evaluation.json", "{}"),
     ("continual.json", '{"cost": 1}'), ("metrics.csv", "epoch,step\n0,1,2\n")],
)  # fmt: skip
def test_one_run_that_cannot_be_read_is_left_out_by_name(file: str, text: str, tmp_path: Path) -> None:
    write(tmp_path)
    bad = write(tmp_path, "other", seed=1)
    (bad / file).write_text(text)
    runs, notes = find_runs([tmp_path])
    assert len(runs) + len(notes) == 2
    assert all(str(bad) in note for note in notes)


@pytest.mark.parametrize("file", ["probe.json", "predictions.npz"])
def test_what_probe_and_predict_write_is_no_run(file: str, tmp_path: Path) -> None:
    write(tmp_path)
    other = tmp_path / "other" / "2026-01-02_03-04-05"
    other.mkdir(parents=True)
    (other / file).touch()
    (other / "config.yaml").touch()
    runs, notes = find_runs([tmp_path])
    assert len(runs) == 1
    assert not notes


@pytest.mark.parametrize("trainer", [{"max_epochs": 4}, {"max_steps": 40, "max_epochs": -1}])
def test_a_run_without_test_images_counts_when_it_has_made_all_its_steps(trainer: Any, tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, "folder", settings={"trainer": trainer}, rows=ROWS))
    assert run.measures == {"train/loss": 2.5, "val/knn": 0.75}


def test_in_a_folder_the_newest_run_of_a_seed_counts(tmp_path: Path) -> None:
    old, new = (write(tmp_path, time=f"2026-01-01_00-00-0{place}") for place in (1, 2))
    other = write(tmp_path, seed=1, time="2026-01-01_00-00-00")
    runs, notes = find_runs([tmp_path])
    assert {run.directory for run in runs} == {new, other}
    assert notes == [f"{old} is left out: {new.name} has the same settings and seed."]
    assert {run.directory for run in find_runs([old, new])[0]} == {old, new}  # both are asked for by name


def test_a_later_test_of_a_run_does_not_take_its_place(tmp_path: Path) -> None:
    trained = write(tmp_path)
    write(tmp_path, time="2026-01-01_00-00-09", rows=[{"epoch": 4, "step": 40, "test/knn": 0.9}])
    assert [run.directory for run in find_runs([tmp_path])[0]] == [trained]


@pytest.mark.parametrize("command", ["test", "validate"])
def test_a_directory_that_only_a_test_wrote_is_no_run(command: str, tmp_path: Path) -> None:
    trained = write(tmp_path)
    rows = [{"epoch": 4, "step": 40, f"{command}/knn": 0.9}]
    again = write(tmp_path, "again", time="2026-01-01_00-00-09", rows=rows, settings={"untrained": False})
    runs, notes = find_runs([trained.parent, again])
    assert [run.directory for run in runs] == [trained]
    assert notes == [f"{again} is left out: it trained nothing: give the run that it tested or validated."]


def test_the_word_none_is_the_setting_null(tmp_path: Path) -> None:
    first, second = (
        read_run(write(tmp_path, seed=seed, time=str(seed), settings={"model": {"weights": weights}}))
        for seed, weights in enumerate(["None", None])
    )
    assert alike(first) == alike(second)


def test_students_of_teachers_that_differ_in_their_seed_are_alike(tmp_path: Path) -> None:
    def student(number: int, lr: float) -> Any:
        teacher = write(tmp_path / f"kept-{number}", "teacher", number, settings={"model": {"lr": lr}})
        settings = {"model": {"teacher": str(teacher.parent)}}
        time = f"2026-01-01_00-00-0{number}"
        return alike(read_run(write(tmp_path, "student", number, time=time, settings=settings)))

    first, second, third = student(0, 0.1), student(1, 0.1), student(2, 0.2)
    assert first == second != third


def test_a_config_that_names_its_own_directory_is_read(tmp_path: Path) -> None:
    directory = write(tmp_path)
    (directory / "config.yaml").write_text(f"data: {{root: {directory}}}\n")
    assert read_run(directory).settings["data.root"].startswith("run simclr (")


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no run .*lost: give the directory of a run"):
        find_runs([tmp_path / "lost"])
    with pytest.raises(ValueError, match="has no runs: give the directory of a run, or a folder of runs"):
        find_runs([tmp_path])
    unfinished = write_run(tmp_path, "simclr")
    with pytest.raises(ValueError, match="no run can be compared: .* it has no report"):
        find_runs([unfinished])


def test_the_last_value_of_every_column_counts(tmp_path: Path) -> None:
    rows = read_metrics(write(tmp_path) / "metrics.csv")
    assert rows == ROWS
    assert last_values(rows) == {"epoch": 3, "step": 39, "train/loss": 2.5, "train/grad_norm": 1.0, "val/knn": 0.75}
    assert read_metrics(tmp_path / "none.csv") == []
