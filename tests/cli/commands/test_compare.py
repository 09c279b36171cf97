"""``recipes compare`` averages over seeds, tells runs apart, and draws what it says."""

import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.cli import main as command
from recipes.cli.commands.compare import main
from recipes.cli.run_directory import RUN_DIRECTORY
from recipes.evaluation.comparison import grouped
from recipes.evaluation.continual import MEASURES
from recipes.evaluation.runs import read_run
from recipes.plots.comparison_tables import continual_table
from tests.helpers.written_runs import evaluation, matrix, write_run


def write(
    folder: Path,
    name: str,
    seed: int = 0,
    time: str = "2026-01-01_00-00-00",
    tasks: int = 3,
    scenario: str = "class",
    **changes: Any,
) -> Path:
    """Makes the directory of a continual run, whose matrices depend on its name and seed."""
    number = 100 * len(name) + seed
    matrices = {"aware": matrix(number, tasks), "agnostic": matrix(number + 50, tasks)}
    report = {
        "recipe": "LwF", "encoder": "MLP", "data": "Digits", "scenario": scenario,
        "view": "aware" if scenario == "task" else "agnostic",
        "tasks": [[f"class {task}"] for task in range(tasks)], "tasks_learned": tasks, "matrix": matrices,
        "measures": {
            view: {name: None if math.isnan(x := of(torch.tensor(rows, dtype=torch.float64))) else x
                   for name, of in MEASURES.items()}
            for view, rows in matrices.items()
        },
        "cost": {
            "seconds": [30.0 + seed] * tasks, "flops_per_image": [2e6 + seed] * tasks,
            "bytes": {"parameters": 3_000_000, "buffers": 500_000, "on_top": {}},
        },
        "protocol": {"seed": seed, "split": "test", "epochs_per_task": [2] * tasks},
    }  # fmt: skip
    return write_run(folder, name, seed, time, continual=report | changes)


def of(directory: Path, measure: str, view: str = "agnostic") -> float:
    report = json.loads((directory / "continual.json").read_text())
    return MEASURES[measure](torch.tensor(report["matrix"][view], dtype=torch.float64))


def found(output: Path) -> dict[str, dict[str, Any]]:
    return {run["name"]: run for run in json.loads((output / "comparison.json").read_text())["runs"]}


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the pictures, none of which is written: that takes long."""
    names: list[str] = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **options: names.append(path.name))
    return names


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real runs of several recipes, a few steps each, one of which has failed."""
    folder = tmp_path_factory.mktemp("trained") / "runs"
    lean = (
        "--probe.references false --probe.labels_per_class [] --pictures.points 9 --trainer.enable_progress_bar false"
    )
    one = f"{lean} --trainer.max_epochs 1 --trainer.check_val_every_n_epoch 1"
    few = f"{one} --data.size 8 --trainer.limit_train_batches 4"
    tasks = "--data.epochs_per_task 1 --trainer.enable_progress_bar false"
    commands = [
        f"--config simclr-digits {few} --model.scheduler.warmup_epochs 0",
        *(f"--config supervised-digits {few} --seed_everything {seed}" for seed in (0, 1)),
        f"--config distill-digits {one} --trainer.limit_train_batches 4 --model.scheduler.warmup_epochs 0 "
        "--model.teacher TEACHER",
        f"--config lwf-split-digits {tasks} --model.warmup_epochs 0",
        f"--config rehearsal-split-digits {tasks} --seed_everything 1",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        patch.delenv(RUN_DIRECTORY, raising=False)
        teacher = f"--config teacher-digits {one} --trainer.limit_train_batches 4 --model.scheduler.warmup_epochs 0"
        command(["fit", *teacher.split(), "--runs", str(folder.parent / "teachers")])
        for line in commands:
            line = line.replace("TEACHER", str(folder.parent / "teachers" / "teacher-digits"))
            command(["fit", *line.split(), "--runs", str(folder)])
    (folder / "byol-digits" / "2026-01-01_00-00-00").mkdir(parents=True)
    return folder


@pytest.mark.slow
def test_real_runs_of_several_recipes_are_compared_in_one_table(
    trained: Path, tmp_path: Path, drawn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    main([str(trained), "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert max(map(len, said.split("byol-digits/")[0].splitlines()[:-1])) <= 80
    runs = found(tmp_path)
    assert {name: run["recipe"] for name, run in runs.items()} == {
        "distill-digits": "TeacherStudent", "lwf-split-digits": "LwF", "rehearsal-split-digits": "Rehearsal",
        "simclr-digits": "SimCLR", "supervised-digits": "Supervised",
    }  # fmt: skip
    assert runs["supervised-digits"]["seeds"] == [0, 1]
    knn = []
    for directory in runs["supervised-digits"]["directories"]:
        knn.append(json.loads((Path(directory) / "evaluation.json").read_text())["accuracy"]["trained_encoder"]["knn"])
    expected = {"mean": statistics.mean(knn), "std": statistics.stdev(knn)}
    assert runs["supervised-digits"]["measures"]["test/knn"] == pytest.approx(expected)
    assert set(runs["simclr-digits"]["measures"]) >= {"test/knn", "test/linear", "val/knn", "train/loss"}
    assert runs["distill-digits"]["cost"]["steps"]["mean"] == 4
    assert "test/agreement" not in runs["distill-digits"]["measures"]  # of one group alone
    with (tmp_path / "comparison.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["supervised-digits"]["test/knn"]) == pytest.approx(expected["mean"])
    assert float(rows["supervised-digits"]["test/knn std"]) == pytest.approx(expected["std"])
    assert rows["simclr-digits"]["test/average_accuracy"] == rows["simclr-digits"]["test/knn std"] == ""
    assert "model SimCLR, " in rows["simclr-digits"]["differences"]
    assert (tmp_path / "comparison.md").read_text().count("\n") == 2 + len(runs)
    assert "supervised-digits & Supervised & 2 & " in (tmp_path / "comparison.tex").read_text()
    assert "After 5 tasks" in said
    assert "byol-digits/2026-01-01_00-00-00 is left out: it has no report" in said
    assert "Different data: Digits 16 (distill-digits); TaskSequence of Digits 8 (lwf-split-digits, " in said
    assert sorted(drawn) == [
        "accuracy-over-tasks.png", "cost.png", "curves.png", "forgetting.png", "measures.png",
        "stability-plasticity.png",
    ]  # fmt: skip


def test_one_run_is_a_table_with_one_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path, "simclr", evaluation=evaluation(0.9))
    main([str(run), "--out", str(tmp_path / "out")])
    assert found(tmp_path / "out")["simclr"]["measures"]["test/knn"] == {"mean": 0.9, "std": 0.0}
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" simclr ")]
    assert row.split() == ["simclr", "45.0", "90.0", "2", "4", "100"]


def test_runs_of_several_seeds_are_averaged_with_their_sample_standard_deviation(
    tmp_path: Path, drawn: list[str]
) -> None:
    seeds = [write(tmp_path, "lwf", seed, f"2026-01-01_00-00-0{seed}") for seed in range(3)]
    other = write(tmp_path, "finetuning")
    main([*map(str, [*seeds, other]), "--output", str(tmp_path / "out")])
    runs = found(tmp_path / "out")
    assert list(runs) == ["lwf", "finetuning"]
    assert list(runs["lwf"]["seeds"]) == [0, 1, 2]
    says_nothing = {"forward_transfer"}  # in the scenario class
    assert not {f"test/{name}" for name in says_nothing} & set(runs["lwf"]["measures"])
    for name in MEASURES.keys() - says_nothing:
        values = [of(seed, name) for seed in seeds]
        expected = {"mean": statistics.mean(values), "std": statistics.stdev(values)}
        assert runs["lwf"]["measures"][f"test/{name}"] == pytest.approx(expected)
        assert runs["finetuning"]["measures"][f"test/{name}"] == pytest.approx({"mean": of(other, name), "std": 0})
    minutes = [3 * (30 + seed) / 60 for seed in range(3)]
    expected = {"mean": statistics.mean(minutes), "std": statistics.stdev(minutes)}
    assert runs["lwf"]["cost"]["minutes"] == pytest.approx(expected)
    assert runs["lwf"]["cost"]["megabytes"]["mean"] == pytest.approx(3.5)
    assert runs["lwf"]["cost"]["flops"]["mean"] == pytest.approx(2e6 + 1)
    assert sorted(drawn) == [
        "accuracy-over-tasks.png", "cost.png", "forgetting.png", "measures.png", "stability-plasticity.png",
    ]  # fmt: skip
    assert [torch.tensor(rows).shape for rows in runs["lwf"]["matrices"]] == [(4, 3)] * 3


def test_the_view_is_that_of_the_scenario(tmp_path: Path) -> None:
    with_task = write(tmp_path, "lwf", scenario="task")
    main([str(with_task), "--output", str(tmp_path / "out")])
    mean = found(tmp_path / "out")["lwf"]["measures"]["test/average_accuracy"]["mean"]
    assert mean == pytest.approx(of(with_task, "average_accuracy", "aware"))


def test_the_table_has_a_row_for_each_run_in_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    long = "feature-extraction-split-fashionmnist"
    write(tmp_path, long, scenario="task")
    seeds = [write(tmp_path, "lwf", seed, f"2026-01-01_00-00-0{seed}") for seed in range(2)]
    main([str(tmp_path / long), *map(str, seeds), "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-2])) <= 80  # the last two name runs and a folder
    order = [
        "average_accuracy", "average_incremental_accuracy", "learning_accuracy", "backward_transfer",
        "forward_transfer", "forgetting",
    ]  # fmt: skip
    spread = [[of(seed, name) for seed in seeds] for name in order if name != "forward_transfer"]
    row = next(place for place, line in enumerate(lines) if line.startswith(" lwf "))
    means = [f"{100 * statistics.mean(values):.1f}" for values in spread]
    means.insert(4, "–")  # forward transfer says nothing in the scenario class
    assert lines[row].split() == ["lwf", "class", *means, "3.5", f"{(90 + 93) / 2 / 60:.3g}"]
    assert lines[row + 1].split() == ["2", "seeds", *(f"±{100 * statistics.stdev(values):.1f}" for values in spread)]
    assert any(line.startswith(" feature-extraction- ") for line in lines)
    assert f"Different scenarios: task ({long}); class (lwf)." in lines


def test_a_scenario_that_all_have_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = grouped([read_run(write(tmp_path, name)) for name in ("lwf", "joint")])
    result = continual_table(groups)
    assert "scenario class, task-agnostic" in str(result.caption)
    assert not any("scenario" in str(column.header) for column in result.columns)


def test_what_was_not_measured_is_a_dash(tmp_path: Path, drawn: list[str]) -> None:
    write(tmp_path, "lwf", tasks=1)
    main([str(tmp_path / "lwf"), "--output", str(tmp_path / "out")])
    run = found(tmp_path / "out")["lwf"]
    assert "test/forgetting" not in run["measures"]
    assert not math.isnan(run["measures"]["test/average_accuracy"]["mean"])
    assert sorted(drawn) == ["accuracy-over-tasks.png", "cost.png", "measures.png"]
    assert "–" in list(continual_table(grouped([read_run(*(tmp_path / "lwf").iterdir())])).columns[-3].cells)


def error(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(["compare", *args])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_sequences_of_other_lengths_have_no_common_table_of_forgetting(
    tmp_path: Path, drawn: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "lwf")
    write(tmp_path, "short", tasks=2)
    main([str(tmp_path), "--out", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert "Different numbers of tasks learned: 3 (lwf); 2 (short)." in lines
    assert "There is no table of forgetting, because the runs have learned different numbers of tasks." in lines
    assert sorted(drawn) == ["cost.png", "measures.png"]


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "simclr").mkdir()
    assert f"there is no run {tmp_path}/lvf" in error([f"{tmp_path}/lvf"], capsys)
    assert "simclr has no runs: give the directory of a run" in error([str(tmp_path / "simclr")], capsys)
    unfinished = write_run(tmp_path, "byol")
    assert "no run can be compared: " in error([str(unfinished), "--out", str(tmp_path / "out")], capsys)
    assert not (tmp_path / "out").exists()
    assert "runs" in error([], capsys)


def test_the_command_is_listed() -> None:
    assert main.__doc__
    from recipes.cli import COMMANDS
    from recipes.cli.catalogue import OVERVIEW

    assert "compare" in COMMANDS
    assert "\n  compare " in OVERVIEW
