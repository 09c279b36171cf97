"""Tables as text can be read by the programs that they are for."""

import csv
import io
import re
from pathlib import Path

import pytest

import recipes
from recipes.evaluation.text_tables import cell, comma_separated, escaped, latex, markdown

SPECIAL = r"a_b & 50 % of $x^2$ #1 {~} \n <±>"


def test_latex_escapes_every_special_character():
    assert escaped(SPECIAL) == (
        r"a\_b \& 50 \% of \$x\textasciicircum{}2\$ \#1 \{\textasciitilde{}\} \textbackslash{}n "
        r"\textless{}$\pm$\textgreater{}"
    )


def test_latex_has_a_line_for_each_row_and_a_letter_for_each_column():
    lines = latex(["", "kNN (%)"], [["sim_clr", "90.0 ± 0.5"]]).splitlines()
    assert lines[1] == r"\begin{tabular}{lr}"
    assert lines[3] == r" & kNN (\%) \\"
    assert lines[5] == r"sim\_clr & 90.0 $\pm$ 0.5 \\"


def test_csv_is_read_as_it_was_written():
    text = comma_separated(["name", "differences"], [['a, "b"', "x [1, 2], y 3"], ["c", 0.5]])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows == [{"name": 'a, "b"', "differences": "x [1, 2], y 3"}, {"name": "c", "differences": "0.5"}]


@pytest.mark.parametrize(
    "text",
    ["=cmd()", "+1+1", "-2+3+cmd|' /C calc'!A0", "@SUM(1)", " =1", "\t=1", "\r=1", "'a", "＝1", "=1,\n2", "-a.png"],
)
def test_a_text_like_a_formula_is_none_in_csv_and_comes_back_without_its_apostrophe(text):
    ((head,), (cell,)) = csv.reader(io.StringIO(comma_separated([text], [[text]]), newline=""))
    assert head == cell == f"'{text}"


@pytest.mark.parametrize("text", ["a", "a=1", "dog, or wolf", "-5", "+1", "-0.5", "1e-3", -0.5, "ü", "한국", "—"])
def test_other_texts_and_numbers_stay_as_they_are_in_csv(text):
    assert list(csv.reader(io.StringIO(comma_separated(["a"], [[text]])))) == [["a"], [str(text)]]


def test_no_other_part_of_the_project_writes_csv():
    writing = re.compile(r"csv\.writer|DictWriter|to_csv|savetxt")
    sources = Path(recipes.__file__).parents[1]
    files = [path for folder in ("recipes", "datamodules", "losses") for path in (sources / folder).rglob("*.py")]
    assert [path.name for path in files if writing.search(path.read_text())] == ["text_tables.py"]


def test_a_bar_in_a_cell_does_not_end_it_in_markdown():
    assert markdown(["", "b"], [["x|y", "1"]]) == "|  | b |\n| --- | --- |\n| x\\|y | 1 |\n"


def test_a_cell_has_its_deviation_unless_it_is_zero_or_without_decimals():
    assert cell({"mean": 0.705, "std": 0.0071}, 100) == "70.5 ± 0.7"
    assert cell({"mean": 0.705, "std": 0.0}, 100) == "70.5"
    assert cell({"mean": 1234.5, "std": 7.0}, decimals=0) == "1,234"
    assert cell(None) == "–"
