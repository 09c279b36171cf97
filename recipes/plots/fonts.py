"""Figures whose names may be in any script."""

import unicodedata
import warnings
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter

_LATIN = 0x24F  # the last letter of Latin Extended-B: the default font has all of them
_ONLY_BOXES = ("lastresort", "blank", "fallback")  # fonts that claim every character
_INSTALL = {  # Debian's package: what has its glyphs
    "fonts-noto-cjk": "Chinese, Japanese or Korean",
    "fonts-symbola": "emoji or symbols",
    "fonts-noto-core": "other scripts",
}
_said: set[str] = set()


class NamedFigure(Figure):
    """A figure that takes the glyphs which its default font lacks from other installed fonts, when it is drawn."""

    def draw(self, renderer: Any) -> None:
        """Draws the figure."""
        if missing := _lacking(_texts(self)):
            families, without = fonts_with(frozenset(missing))
            self._add(families)
            _say(without)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing from")  # said above, once
            super().draw(renderer)

    def _add(self, families: Iterable[str]) -> None:
        for text in self.findobj(Text):
            text.set_fontfamily([*dict.fromkeys([*text.get_fontfamily(), *families])])
        for axes in self.axes:  # ticks make their labels while they are drawn
            axes.tick_params(labelfontfamily=[*font_manager.FontProperties().get_family(), *families])


@lru_cache
def fonts_with(characters: frozenset[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Chooses installed fonts that have the glyphs of characters.

    Returns:
        The families, and the characters that no installed font has.
    """
    families, missing = [], characters
    known = {font.fname: font for font in font_manager.fontManager.ttflist}
    for path in sorted({*known, *font_manager.findSystemFonts()}, key=_order):
        if not missing:
            break
        found = missing & _glyphs(path)
        if not found:
            continue
        if path not in known:  # matplotlib's list may be older than the font
            font_manager.fontManager.addfont(path)
            known = {font.fname: font for font in font_manager.fontManager.ttflist}
        families.append(known[path].name)
        missing -= found
    return tuple(families), missing


def _order(path: str) -> tuple[bool, bool, str]:
    name = Path(path).name.lower()
    return "sans" not in name, "regular" not in name, name


def _glyphs(path: str) -> set[str]:
    """The characters that matplotlib can draw with a font: none of a font of bitmaps, such as coloured emoji."""
    if any(word in Path(path).name.lower() for word in _ONLY_BOXES):
        return set()
    try:
        font = FT2Font(path)
        return {chr(code) for code in font.get_charmap()} if font.scalable else set()
    except (OSError, RuntimeError):
        return set()


@lru_cache
def _default_glyphs(path: str) -> set[str]:
    return _glyphs(path)


def _texts(figure: Figure) -> list[str]:
    texts = [text.get_text() for text in figure.findobj(Text)]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if isinstance(formatter := axis.get_major_formatter(), FixedFormatter):
                texts += formatter.seq
    return texts


def _lacking(texts: Iterable[str]) -> set[str]:
    """The characters that need a glyph and have none in the default font."""
    odd = {character for character in set("".join(texts)) if ord(character) > _LATIN}
    if not odd:
        return odd
    odd -= _default_glyphs(str(font_manager.findfont(font_manager.FontProperties())))
    # format characters and variation selectors are not drawn
    return {c for c in odd if unicodedata.category(c) not in ("Cc", "Cf", "Cs") and not 0xFE00 <= ord(c) <= 0xFE0F}


def _say(missing: frozenset[str]) -> None:
    """Warns of characters without a glyph, once for each package that has them."""
    packages = dict.fromkeys(map(_package, sorted(missing)))
    if packages.keys() <= _said:
        return
    _said.update(packages)
    characters = " ".join(f"U+{ord(character):04X}" for character in sorted(missing)[:3])
    rank_zero_warn(
        f"pictures show boxes: no installed font has {len(missing)} characters of their names ({characters}"
        f"{' ...' if len(missing) > 3 else ''}). Install one for {' and '.join(_INSTALL[name] for name in packages)}, "
        f"such as Debian's {' and '.join(packages)}."
    )


def _package(character: str) -> str:
    if 0x1F000 <= ord(character) <= 0x1FBFF or unicodedata.category(character) == "So":
        return "fonts-symbola"
    wide = unicodedata.east_asian_width(character) in "WF" or 0x1100 <= ord(character) <= 0x11FF
    return "fonts-noto-cjk" if wide else "fonts-noto-core"
