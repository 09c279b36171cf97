"""Names in any script have their glyphs in all pictures, if a font that has them is installed."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

import recipes
from recipes.plots import fonts
from recipes.plots.base import display_width, new_figure, shortened

SIGN = "\U00010600"  # of Linear A, which fonts for daily use have not
NAME = f"a{SIGN}"


@pytest.fixture
def tiny(tmp_path):
    """A font file with one glyph, a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 1000), (1000, 1000), (1000, 0)):
        pen.lineTo(corner)
    pen.closePath()
    builder = FontBuilder(1000)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(SIGN): "square"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "square": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=1000, descent=0)
    builder.setupNameTable({"familyName": "Tiny", "styleName": "Regular", "psName": "Tiny-Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "Tiny.ttf")
    return str(tmp_path / "Tiny.ttf")


@pytest.fixture
def installed(monkeypatch):
    """Takes the place of the fonts of the system."""

    def install(*paths):
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(paths))
        fonts.fonts_with.cache_clear()
        monkeypatch.setattr(fonts, "_said", set())

    before = list(font_manager.fontManager.ttflist)
    yield install
    font_manager.fontManager.ttflist[:] = before
    fonts.fonts_with.cache_clear()


PLACES = {
    "title": lambda axes: axes.set_title(NAME),
    "ticks": lambda axes: axes.set_yticks([0], [NAME]),
    "legend": lambda axes: (axes.plot([0], label=NAME), axes.legend()),
    "text": lambda axes: axes.text(0.5, 0.5, NAME),
    "of the figure": lambda axes: axes.figure.suptitle(NAME),
}


def dark(place, path):
    figure = new_figure(3, 2)
    PLACES[place](figure.add_subplot())
    figure.savefig(path)
    from PIL import Image

    return int((np.asarray(Image.open(path).convert("L")) < 128).sum())


@pytest.mark.parametrize("place", PLACES)
def test_a_glyph_comes_from_any_installed_font_wherever_the_name_is(place, tiny, installed, tmp_path):
    installed()
    with pytest.warns(UserWarning, match="pictures show boxes"):
        boxes = dark(place, tmp_path / "a.png")
    installed(tiny)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dark(place, tmp_path / "a.png") > boxes  # the square is filled, the box is not


def test_what_to_install_is_said_in_one_line_once_for_all_pictures(installed, tmp_path):
    installed()
    known = {font.fname for font in font_manager.fontManager.ttflist}
    names = {"fonts-noto-cjk": "\u3400", "fonts-symbola": "\U0001f9ff", "fonts-noto-core": SIGN}
    names = {package: sign for package, sign in names.items() if not any(sign in fonts._glyphs(f) for f in known)}
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        for _ in range(3):
            figure = new_figure(2, 2)
            figure.suptitle("".join(names.values()))
            figure.savefig(tmp_path / "a.png")
    (line,) = (str(warning.message) for warning in given)
    assert "\n" not in line
    assert all(package in line for package in names)


@pytest.mark.parametrize("name", ["cat", "Größe", "naïve", "–…×→", "кот", "γάτα", "عربي", "\ufe0fx"])
def test_for_names_in_the_default_font_no_font_is_looked_for(name, monkeypatch, tmp_path):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: pytest.fail("looked for a font"))
    figure = new_figure(2, 2)
    figure.suptitle(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(tmp_path / "a.png")


def test_every_figure_of_the_project_is_of_this_kind():
    made = [
        path.name
        for path in Path(recipes.__file__).parent.rglob("*.py")
        if re.search(r"pyplot|(?<!Named)Figure\(", path.read_text().split('"""', 2)[-1])
    ]
    assert made == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a" * 12, "a" * 12), ("a" * 13, "a" * 11 + "…"), ("한" * 6, "한" * 6), ("한" * 7, "한" * 5 + "…")],
)
def test_wide_letters_count_twice_where_a_name_is_shortened(name, expected):
    assert shortened(name) == expected
    assert display_width(expected) <= 12
