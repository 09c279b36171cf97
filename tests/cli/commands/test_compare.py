"""``recipes compare`` averages over seeds, tells runs apart, and draws what it says."""

import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from recipes.cli import main as command
from recipes.cli.commands import compare
from recipes.cli.commands.compare import (
    accuracy_curves,
    cost_bars,
    forgetting_bars,
    grouped,
    main,
    plane,
    read_run,
    table,
)
from recipes.evaluation.continual import MEASURES


def matrix(seed: int, tasks: int = 3) -> list[list[float]]:
    return torch.rand(tasks + 1, tasks, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()


def write(
    folder: Path,
    name: str,
    seed: int = 0,
    time: str = "2026-01-01_00-00-00",
    tasks: int = 3,
    scenario: str = "class",
    learning_rate: float = 0.1,
    **changes: Any,
) -> Path:
    """Makes the directory of a run, whose matrices depend on its name and seed."""
    number = 100 * len(name) + seed
    matrices = {"aware": matrix(number, tasks), "agnostic": matrix(number + 50, tasks)}
    report = {
        "recipe": "LwF", "encoder": "MLP", "data": "Digits", "scenario": scenario,
        "view": "aware" if scenario == "task" else "agnostic",
        "tasks": [[f"class {task}"] for task in range(tasks)], "tasks_learned": tasks, "matrix": matrices,
        "cost": {
            "seconds": [30.0 + seed] * tasks, "flops_per_image": [2e6 + seed] * tasks,
            "bytes": {"parameters": 3_000_000, "buffers": 500_000, "on_top": {}},
        },
        "protocol": {"seed": seed, "split": "test"},
    }  # fmt: skip
    directory = folder / name / time
    directory.mkdir(parents=True)
    (directory / "continual.json").write_text(json.dumps(report | changes))
    trainer = f"trainer: {{logger: {{init_args: {{save_dir: {directory}}}}}}}"
    text = f"seed_everything: {seed}\nname: {name}\nmodel: {{lr: {learning_rate}}}\n{trainer}\n"
    (directory / "config.yaml").write_text(text)
    return directory


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


def test_runs_of_several_seeds_are_averaged_with_their_sample_standard_deviation(
    tmp_path: Path, drawn: list[str]
) -> None:
    seeds = [write(tmp_path, "lwf", seed, f"2026-01-01_00-00-0{seed}") for seed in range(3)]
    other = write(tmp_path, "finetuning")
    main([*map(str, [*seeds, other]), "--output", str(tmp_path / "out")])
    runs = found(tmp_path / "out")
    assert list(runs) == ["lwf", "finetuning"]
    assert runs["lwf"]["seeds"] == [0, 1, 2]
    for name in MEASURES:
        values = [of(seed, name) for seed in seeds]
        expected = {"mean": statistics.mean(values), "std": statistics.stdev(values)}
        assert runs["lwf"]["measures"][name] == pytest.approx(expected)
        assert runs["finetuning"]["measures"][name] == pytest.approx({"mean": of(other, name), "std": 0})
    minutes = [3 * (30 + seed) / 60 for seed in range(3)]
    expected = {"mean": statistics.mean(minutes), "std": statistics.stdev(minutes)}
    assert runs["lwf"]["cost"]["minutes"] == pytest.approx(expected)
    assert runs["lwf"]["cost"]["megabytes"]["mean"] == pytest.approx(3.5)
    assert runs["lwf"]["cost"]["flops"]["mean"] == pytest.approx(2e6 + 1)
    assert sorted(drawn) == [
        "accuracy-over-tasks.png", "cost.png", "forgetting.png", "stability-plasticity.png",
    ]  # fmt: skip


def test_the_view_is_that_of_the_scenario(tmp_path: Path) -> None:
    with_task = write(tmp_path, "lwf", scenario="task")
    main([str(with_task), "--output", str(tmp_path / "out")])
    mean = found(tmp_path / "out")["lwf"]["measures"]["average_accuracy"]["mean"]
    assert mean == pytest.approx(of(with_task, "average_accuracy", "aware"))


@pytest.mark.parametrize("second", [{"seed": 0}, {"seed": 1, "learning_rate": 0.2}])
def test_runs_of_one_name_with_the_same_seed_or_other_settings_are_not_averaged(
    second: dict[str, Any], tmp_path: Path
) -> None:
    runs = [write(tmp_path, "lwf"), write(tmp_path, "lwf", time="2026-01-01_00-00-01", **second)]
    groups = grouped(map(read_run, map(str, runs)))
    assert [group.name for group in groups] == [f"lwf/2026-01-01_00-00-0{i}" for i in range(2)]
    assert [len(group.runs) for group in groups] == [1, 1]


def test_a_run_that_is_given_twice_counts_once(tmp_path: Path) -> None:
    run = write(tmp_path, "lwf")
    main([str(run), str(run.parent), "--output", str(tmp_path / "out")])
    (found_run,) = json.loads((tmp_path / "out" / "comparison.json").read_text())["runs"]
    assert found_run["seeds"] == [0]


def test_of_a_folder_of_runs_the_newest_with_a_report_is_taken(tmp_path: Path) -> None:
    write(tmp_path, "lwf", 0, "2026-01-01_00-00-00")
    newest = write(tmp_path, "lwf", 1, "2026-01-02_00-00-00")
    (tmp_path / "lwf" / "2026-01-03_00-00-00").mkdir()  # goes on
    assert read_run(str(tmp_path / "lwf")).directory == newest


def test_the_table_has_a_row_for_each_run_in_80_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    long = "feature-extraction-split-fashionmnist"
    write(tmp_path, long, scenario="task")
    seeds = [write(tmp_path, "lwf", seed, f"2026-01-01_00-00-0{seed}") for seed in range(2)]
    main([str(tmp_path / long), *map(str, seeds), "--output", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:-1])) <= 80  # the last names a folder
    order = [
        "average_accuracy", "average_incremental_accuracy", "learning_accuracy", "backward_transfer",
        "forward_transfer", "forgetting",
    ]  # fmt: skip
    spread = [[of(seed, name) for seed in seeds] for name in order]
    (row,) = [place for place, line in enumerate(lines) if line.startswith(" lwf ")]
    means = [f"{100 * statistics.mean(values):.1f}" for values in spread]
    assert lines[row].split() == ["lwf", "class", *means, "3.5", f"{(90 + 93) / 2 / 60:.3g}"]
    assert lines[row + 1].split() == ["2", "seeds", *(f"±{100 * statistics.stdev(values):.1f}" for values in spread)]
    assert any(line.startswith(" feature-extraction- ") for line in lines)
    assert "The runs differ in scenario." in lines


def test_a_scenario_that_all_have_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    groups = grouped([read_run(str(write(tmp_path, name))) for name in ("lwf", "joint")])
    result = table(groups)
    assert "scenario class, task-agnostic" in str(result.caption)
    assert not any("scenario" in str(column.header) for column in result.columns)


def test_runs_that_cannot_be_compared_well_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "lwf")
    write(tmp_path, "joint", data="Other", encoder="ResNet", protocol={"seed": 0, "split": "val"})
    main([str(tmp_path / "lwf"), str(tmp_path / "joint"), "--output", str(tmp_path / "out")])
    said = " ".join(capsys.readouterr().out.split())
    assert "The runs differ in data and the images they are measured on and encoder." in said


def test_pictures_show_every_group(tmp_path: Path) -> None:
    seeds = [write(tmp_path, "lwf", seed, f"2026-01-01_00-00-0{seed}") for seed in range(2)]
    cost = {"seconds": [6.0] * 3, "flops_per_image": [None] * 3, "bytes": {"parameters": 0, "buffers": 1}}
    joint = write(tmp_path, "joint", cost=cost)
    groups = grouped([read_run(str(directory)) for directory in (*seeds, joint)])
    curves = accuracy_curves(groups).axes[0].lines
    matrices = [json.loads((path / "continual.json").read_text())["matrix"]["agnostic"] for path in (*seeds, joint)]
    means = [[100 * statistics.mean(rows[t][:t]) for t in (1, 2, 3)] for rows in matrices]
    assert list(curves[0].get_ydata()) == pytest.approx([statistics.mean(pair) for pair in zip(*means[:2])])
    assert list(curves[1].get_ydata()) == pytest.approx(means[2])
    bars = [bar.get_height() for bar in forgetting_bars(groups).axes[0].patches]
    lost = [[100 * (max(rows[1][j], rows[2][j]) - rows[3][j]) for j in (0, 1)] for rows in matrices]
    assert bars == pytest.approx([statistics.mean(pair) for pair in zip(*lost[:2])] + lost[2])
    *points, _ = plane(groups).axes[0].lines
    points = [line for line in points if len(line.get_xdata()) == 1 and line.get_marker() == "o"]
    for line, rows in zip(points, ([*matrices[:2]], [matrices[2]])):
        learning = statistics.mean(statistics.mean(each[t + 1][t] for t in range(3)) for each in rows)
        old = statistics.mean(statistics.mean(each[3][:2]) for each in rows)
        assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx((100 * learning, 100 * old))
    panels = cost_bars(groups).axes
    assert [bar.get_width() for bar in panels[0].patches] == pytest.approx([3 * 30.5 / 60, 18 / 60])
    assert [text.get_text() for text in panels[2].texts] == [" not known"]


def test_nothing_measured_is_a_dash_and_null(tmp_path: Path, drawn: list[str]) -> None:
    write(tmp_path, "lwf", tasks=1)
    main([str(tmp_path / "lwf"), "--output", str(tmp_path / "out")])
    run = found(tmp_path / "out")["lwf"]
    assert run["measures"]["forgetting"] == {"mean": None, "std": None}
    assert not math.isnan(run["measures"]["average_accuracy"]["mean"])
    assert sorted(drawn) == ["accuracy-over-tasks.png", "cost.png"]
    assert "–" in list(table(grouped([read_run(str(tmp_path / "lwf"))])).columns[-3].cells)


def error(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        command(["compare", *args])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lwf, short = write(tmp_path, "lwf"), write(tmp_path, "short", tasks=2)
    (tmp_path / "simclr").mkdir()
    assert f"there is no run {tmp_path}/lvf" in error([f"{tmp_path}/lvf"], capsys)
    assert "it is not the run of a continual recipe" in error([str(tmp_path / "simclr")], capsys)
    said = error([str(lwf), str(short), "--output", str(tmp_path / "out")], capsys)
    assert "different numbers of tasks (lwf 3, short 2)" in said
    assert not (tmp_path / "out").exists()
    assert "runs" in error([], capsys)


def test_the_command_is_listed() -> None:
    assert compare.main.__doc__
    from recipes.cli import COMMANDS
    from recipes.cli.catalogue import OVERVIEW

    assert "compare" in COMMANDS
    assert "\n  compare " in OVERVIEW
