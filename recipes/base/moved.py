"""Old names of modules that have moved, so that programs that import them continue to work."""

import sys
import warnings
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MOVED = {
    "recipes.accuracy_matrix": "recipes.evaluation.continual",
    "recipes.checkpoint": "recipes.base.checkpoint",
    "recipes.classifier": "recipes.base.classifier",
    "recipes.features": "recipes.evaluation.features",
    "recipes.probes": "recipes.evaluation",
    "recipes.recipe": "recipes.base.recipe",
    "recipes.transfer.transferability": "recipes.evaluation",
}


class _Finder(MetaPathFinder, Loader):
    """Finds a module that has moved, as one that takes every name from its new place."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        new = MOVED[module.__name__]
        warnings.warn(f"{module.__name__} is now {new}", DeprecationWarning, stacklevel=2)
        there = import_module(new)
        module.__dict__["__getattr__"] = lambda name: getattr(there, name)


def keep_old_names() -> None:
    """Makes the modules importable by their old names; a second call changes nothing."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
