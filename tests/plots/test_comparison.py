"""Figures of several runs show every group, with the numbers of its runs."""

import statistics
from pathlib import Path
from typing import Any

import pytest

from recipes.base.measures import LabelledMetric
from recipes.callbacks import RepresentationProbe
from recipes.evaluation.comparison import Group, grouped, shared
from recipes.evaluation.runs import read_run
from recipes.nn import ConvNet
from recipes.plots.comparison import CURVES, accuracy_curves, curves, forgetting_bars, measure_bars, plane
from recipes.supervised import Supervised
from tests.helpers.written_runs import evaluation, matrix, write_run

MATRICES = [matrix(seed) for seed in range(3)]  # two seeds of lwf, one of joint


def continual(rows: list[list[float]], flops: list[Any]) -> dict[str, Any]:
    return {
        "view": "agnostic", "scenario": "class", "tasks_learned": 3, "matrix": {"agnostic": rows},
        "measures": {"agnostic": {}},
        "cost": {"seconds": [6.0] * 3, "flops_per_image": flops, "bytes": {"parameters": 0, "buffers": 1}},
    }  # fmt: skip


@pytest.fixture
def groups(tmp_path: Path) -> list[Group]:
    """A group of no sequence first, and two continual ones, of two seeds and of one."""
    rows = [{"epoch": e, "step": 10 * e + 9, "train/loss": 4.0 - e, "val/knn": 0.25 * e} for e in range(3)]
    runs = [read_run(write_run(tmp_path, "simclr", evaluation=evaluation(0.9), rows=rows))]
    for place, (name, seed) in enumerate((("lwf", 0), ("lwf", 1), ("joint", 0))):
        flops = [None] * 3 if name == "joint" else [1e6] * 3
        report = {**continual(MATRICES[place], flops), "protocol": {"seed": seed}}
        logged = [{**row, "train/loss": row["train/loss"] + seed} for row in rows]
        time = f"2026-01-01_00-00-0{seed}"
        runs.append(read_run(write_run(tmp_path, name, seed, time, rows=logged, continual=report)))
    return grouped(runs)


def test_curves_are_those_of_the_seeds_mean(groups: list[Group]) -> None:
    figure = curves(groups, ("train/loss", "val/knn", "val/accuracy"), epochs=True)
    assert figure is not None
    loss, knn = figure.axes[:2]
    assert [list(line.get_ydata()) for line in loss.lines] == [[4, 3, 2], [4.5, 3.5, 2.5], [4, 3, 2]]
    assert list(loss.lines[0].get_xdata()) == [1, 2, 3]
    assert len(loss.collections) == 1  # a band for two seeds
    assert list(knn.lines[0].get_ydata()) == [0, 25, 50]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["simclr", "lwf", "joint"]
    assert curves(groups, ("val/accuracy",), epochs=True) is None


def test_long_names_keep_their_ends_and_every_group_has_its_line(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "step": step, "train/loss": 1.0} for step in range(2)]
    names = [f"feature-extraction-split-fashionmnist-with-a-long-name-{place}" for place in range(12)]
    groups = grouped([read_run(write_run(tmp_path, name, rows=rows, evaluation=evaluation(0.5))) for name in names])
    figure = curves(groups, ("train/loss",), epochs=False)
    assert figure is not None
    told = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(set(told)) == 12
    assert max(map(len, told)) <= 40


def test_bars_are_means_and_what_is_not_known_is_said(groups: list[Group]) -> None:
    columns = {column.name: column for column in shared(groups)}
    figure = measure_bars(groups, [columns["minutes"], columns["flops"]], "Cost")
    minutes, flops = figure.axes
    assert [bar.get_width() for bar in minutes.patches] == pytest.approx([2.0, 0.3, 0.3])
    assert [bar.get_width() for bar in flops.patches] == pytest.approx([1.0])
    assert [text.get_text() for text in flops.texts] == [" not known"] * 2


def test_continual_figures_show_the_continual_groups_in_their_colours(groups: list[Group]) -> None:
    lwf, joint = MATRICES[:2], MATRICES[2]
    drawn = accuracy_curves(groups).axes[0].lines
    means = [[100 * statistics.mean(rows[t][:t]) for t in (1, 2, 3)] for rows in MATRICES]
    assert list(drawn[0].get_ydata()) == pytest.approx([statistics.mean(pair) for pair in zip(*means[:2])])
    assert list(drawn[1].get_ydata()) == pytest.approx(means[2])
    assert [line.get_color() for line in drawn] == ["C1", "C2"]  # simclr is C0 in the other figures
    bars = [bar.get_height() for bar in forgetting_bars(groups).axes[0].patches]
    lost = [[100 * (max(rows[1][j], rows[2][j]) - rows[3][j]) for j in (0, 1)] for rows in MATRICES]
    assert bars == pytest.approx([statistics.mean(pair) for pair in zip(*lost[:2])] + lost[2])
    points = [line for line in plane(groups).axes[0].lines if line.get_marker() == "o"]
    for line, rows in zip(points, (lwf, [joint]), strict=True):
        learning = statistics.mean(statistics.mean(each[t + 1][t] for t in range(3)) for each in rows)
        old = statistics.mean(statistics.mean(each[3][:2]) for each in rows)
        assert (line.get_xdata()[0], line.get_ydata()[0]) == pytest.approx((100 * learning, 100 * old))


def test_every_validation_measure_of_a_classifier_and_of_the_probe_has_a_curve() -> None:
    recipe = Supervised(ConvNet((4,)), num_classes=2)
    measured = [part.name for part in recipe.modules() if isinstance(part, LabelledMetric)]
    measured += RepresentationProbe().labelled_measures
    assert {name for name in measured if name.startswith("val/")} <= set(CURVES)
