"""Tables as text: Markdown, LaTeX and CSV from a head and rows of cells."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence

_LATEX = {
    **{letter: f"\\{letter}" for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "–": "--",
}
_FORMULA = re.compile(r"[\t\r\n]|\s*['=+\-@\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", re.ASCII)


def cell(summary: Mapping[str, float] | None, factor: float = 1, decimals: int = 1) -> str:
    """Formats a mean and, unless it is 0, its standard deviation; without decimals the mean alone.

    Args:
        summary: with ``mean`` and ``std``; None becomes a dash.
        factor: of both, such as 100 for per cent.
        decimals: of both.
    """
    if summary is None:
        return "–"
    mean, std = (f"{factor * summary[key]:,.{decimals}f}" for key in ("mean", "std"))
    return f"{mean} ± {std}" if decimals and summary["std"] else mean


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a Markdown table; a vertical bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def latex(head: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    r"""Formats a LaTeX table with the rules of the package ``booktabs``; special characters are escaped.

    Args:
        head: of the columns.
        rows: of cells.
        text: columns that are aligned to the left; all others to the right.
    """
    aligned = "".join("l" if place in text else "r" for place in range(len(head)))
    lines = [" & ".join(map(escaped, line)) + r" \\" for line in (head, *rows)]
    parts = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{{aligned}}}",
        r"\toprule",
        lines[0],
        r"\midrule",
        *lines[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(parts) + "\n"


def escaped(text: str) -> str:
    """Escapes the special characters of LaTeX."""
    return "".join(_LATEX.get(letter, letter) for letter in text)


def comma_separated(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Formats a CSV table, quoted where necessary; a spreadsheet computes nothing in it, see ``plain_cell``."""
    file = io.StringIO(newline="")
    lines = ([plain_cell(cell) if isinstance(cell, str) else cell for cell in line] for line in (head, *rows))
    csv.writer(file).writerows(lines)
    return file.getvalue()


def plain_cell(text: str) -> str:
    """Puts an apostrophe before a text that a spreadsheet could take for a formula.

    These texts begin, after any spaces, with one of = + - @ (of normal or full width), or with an apostrophe, or with a
    tab or the end of a line. Plain numbers stay as they are. Without its first apostrophe, if it has one, a cell is
    the text again.
    """
    if _NUMBER.fullmatch(text) or not _FORMULA.match(text):
        return text
    return f"'{text}"
