"""Modules that a test writes and imports, forgotten at its end."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from recipes.base import imports


@contextmanager
def forgotten(monkeypatch) -> Iterator[None]:
    """Forgets the modules that are imported, named or searched for while it lasts."""
    for name in [name for name in sys.modules if _is_own(name) and "pytest-of-" in _place(name)]:
        del sys.modules[name]  # of a test that did not forget it
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(imports, "_named", [])
    monkeypatch.setattr(imports, "_searched", [])
    yield
    own = [name for name in set(sys.modules) - before if _is_own(name)]
    for name in own:
        del sys.modules[name]


def _is_own(name: str) -> bool:
    place = _place(name)
    return not any(place.startswith(str(folder)) for folder in (sys.prefix, sys.base_prefix, *_PROJECT)) and bool(place)


def _place(name: str) -> str:
    """The file of a module, or the folder of one that is only a folder."""
    module = sys.modules[name]
    folders = getattr(getattr(module, "__spec__", None), "submodule_search_locations", None) or [""]
    return str(getattr(module, "__file__", None) or next(iter(folders)))


_PROJECT = [__file__.rpartition("/tests/")[0]]
