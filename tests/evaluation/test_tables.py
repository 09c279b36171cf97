import math
import statistics

import pytest
import torch

from recipes.evaluation.tables import WIDTH, mean_and_std, new_table, number, per_cent, terminal


def test_the_spread_is_the_sample_standard_deviation() -> None:
    values = [0.1, 0.4, 0.25]
    mean, std = mean_and_std(values)
    assert (mean.item(), std.item()) == pytest.approx((statistics.mean(values), statistics.stdev(values)))
    means, stds = mean_and_std(torch.tensor([values, values[::-1]]).T)
    assert means.tolist() == pytest.approx([statistics.mean(values)] * 2)
    assert stds.tolist() == pytest.approx([statistics.stdev(values)] * 2)


def test_a_single_value_does_not_spread() -> None:
    assert [x.item() for x in mean_and_std([0.5])] == [0.5, 0]


def test_nan_is_null_in_a_file_and_a_dash_in_a_table() -> None:
    assert number(math.nan) is None
    assert number(torch.tensor(0.5)) == 0.5
    assert per_cent(math.nan) == per_cent(None) == per_cent(torch.tensor(math.nan), 0.1) == "–"


def test_a_cell_is_in_per_cent_with_its_deviation_where_there_is_one() -> None:
    assert per_cent(0.12345) == "12.3"
    assert per_cent(torch.tensor(0.9), 0.0123) == "90.0 ±1.2"


def test_tables_are_printed_in_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    table = new_table(title="[a] title")
    table.add_column("word " * 40)
    terminal().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) == WIDTH == 80
    assert "[a] title" in lines[0]
