"""Modules of the user's own, and the limit on what a checkpoint may name.

A module is imported because the user named it, never because a checkpoint says so.
"""

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._common import parsing_settings
from jsonargparse._util import import_object

from recipes.errors import nearest

PACKAGES = ("recipes", "datamodules", "losses", "torch", "torchvision", "timm", "lightning")
_named: list[str] = []  # modules that the user named in this process
_searched: list[Path] = []  # folders besides those of the installed packages
_only_trusted: list[bool] = []  # not empty while ``trusted_only`` lasts

REMEDY = "add --import FILE (in Python: imports=[FILE]) if you trust that code"


def search_also(folder: str | Path) -> None:
    """Finds modules in a folder too, after the installed packages, so that no file there can hide one."""
    folder = Path(folder).resolve()
    if folder not in _searched:
        _searched.append(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def import_named(name: str, folders: Sequence[str | Path] = (".",)) -> None:
    """Imports a module that the user named; checkpoints may name its classes from then on.

    Args:
        name: a Python file, whose module is called by its stem, or by its place in its package where the folder has an
            ``__init__.py``; or a module such as ``my_package.recipes``.
        folders: folders that a relative file is looked for in, the first one first.

    Raises:
        FileNotFoundError: if the file does not exist.
        ImportError: if the module does not exist, another module has its name, or its code raises an exception.
    """
    module = name
    if name.endswith(".py"):
        module = _module_of(_found(name, folders))
    elif not all(part.isidentifier() for part in name.split(".")):
        what = "a folder" if any((Path(folder) / name).is_dir() for folder in folders) else "no module name"
        raise ImportError(
            f"import is {name}, which is {what}: give a Python file such as mine.py, or a module such as mine.recipes"
        )
    imported(module)
    if module not in _named:
        _named.append(module)


def imported(module: str) -> ModuleType:
    """Imports a module.

    Raises:
        ImportError: in one line, with the folders that were searched, or with the exception that its code raised; or
            because the module is not trusted, under ``trusted_only``.
    """
    if _only_trusted and not _is_trusted(module):
        raise ImportError(_distrusted(module))
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise ImportError(_own_words(module, error)) from error
        folders = "".join(f" and not in {folder}" for folder in _searched)
        raise ImportError(
            f"there is no module {error.name!r}: it is not installed{folders}; add --import FILE with the path of its "
            "file"
        ) from error
    except (Exception, SystemExit) as error:  # whatever the code of the module raises
        raise ImportError(_own_words(module, error)) from error


def check_trusted(class_path: Any) -> None:
    """Refuses a ``class_path`` of a checkpoint that is no full name of a class of a trusted module; imports nothing.

    Raises:
        ValueError: if it is none.
    """
    if not isinstance(class_path, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", class_path):
        raise ValueError(f"class_path is {class_path!r}: it must be the full name of a class")
    if not _is_trusted(class_path.rpartition(".")[0]):
        raise ValueError(_distrusted(class_path))


def class_named(class_path: str) -> type:
    """The class that a ``class_path`` names.

    Raises:
        ValueError: if the module has no such class, or something else has that name.
        ImportError: if the module cannot be imported.
    """
    module, _, name = class_path.rpartition(".")
    home = imported(module)
    found = getattr(home, name, None)
    if found is None:
        classes = [name for name, value in vars(home).items() if inspect.isclass(value)]
        where = f" ({home.__file__})" if getattr(home, "__file__", None) and not _of_project(module) else ""
        raise ValueError(f"there is no class {class_path!r}{nearest(name, classes)} in the module {module}{where}")
    if not inspect.isclass(found):
        raise ValueError(f"class_path is {class_path}: it must be a class, not a {_kind(found)}")
    return found


def check_classes(config: Any) -> None:
    """Refuses a parsed configuration in which a ``class_path`` names something else than a class, such as a function.

    Raises:
        ValueError: if there is one.
    """
    if isinstance(config, Namespace | dict):
        config = vars(config) if isinstance(config, Namespace) else config
        path = config.get("class_path")
        if isinstance(path, str) and not inspect.isclass(found := import_object(path)):
            raise ValueError(f"class_path is {path}: it must be a class, not a {_kind(found)}")
        config = list(config.values())
    if isinstance(config, list | tuple):
        for part in config:
            check_classes(part)


@contextmanager
def trusted_only() -> Iterator[None]:
    """While it lasts, configurations may name classes of this project, its libraries and the user's imports only.

    jsonargparse checks each path that a value names before it imports anything, also paths in strings, and again where
    the object is defined: ``recipes.base.checkpoint.torch.os.system`` is ``posix.system``.
    """
    before = dict(parsing_settings)
    set_parsing_settings(
        import_path_denylist=["*"],
        import_path_allowlist=[*PACKAGES, *_named],
        instantiate_subclass_spec_in_any=False,
    )
    _only_trusted.append(True)
    try:
        yield
    finally:
        _only_trusted.pop()
        parsing_settings.clear()
        parsing_settings.update(before)


def refusal(message: str) -> str | None:
    """What to tell the user where ``trusted_only`` refused a path: the words, or None for another message."""
    found = re.search(r"Importing '([\w.]+)' is not allowed", message)
    return found and _distrusted(found[1])


def _is_trusted(module: str) -> bool:
    """Whether a checkpoint may name a module: one of the packages or the user's, and no program of theirs."""
    if "__main__" in module.split("."):
        return False
    return any(f"{module}.".startswith(f"{trusted}.") for trusted in (*PACKAGES, *_named))


def _distrusted(path: str) -> str:
    return f"the checkpoint names {path}, whose module is not trusted: {REMEDY}"


def _found(name: str, folders: Iterable[str | Path]) -> Path:
    files = [Path(folder).resolve() / Path(name).expanduser() for folder in folders]
    for file in files:
        if file.is_file():
            return file
    raise FileNotFoundError(f"import is {name}: there is no file {' or '.join(dict.fromkeys(map(str, files)))}")


def _module_of(file: Path) -> str:
    """The name by which a file is imported; its folder is searched from then on."""
    folder, name = file.parent, file.stem
    while (folder / "__init__.py").is_file():
        folder, name = folder.parent, f"{folder.name}.{name}"
    if not all(part.isidentifier() for part in name.split(".")):
        raise ImportError(f"import is {file}: {name!r} is no name of a module; rename the file")
    search_also(folder)
    importlib.invalidate_caches()  # the file may be a second old
    top = name.partition(".")[0]
    spec = sys.modules[top].__spec__ if top in sys.modules else PathFinder.find_spec(top)
    if spec is None:
        raise ImportError(f"import is {file}: no module {top!r} is found in {folder}")
    origin = Path(spec.origin) if spec.origin else Path("built-in")
    own = folder / top / "__init__.py" if "." in name else file
    if not origin.exists() or not own.samefile(origin):
        owner = origin if origin.exists() else "Python itself"
        raise ImportError(f"import is {file}: the module name {top!r} already belongs to {owner}; rename the file")
    return name


def _own_words(module: str, error: BaseException) -> str:
    """Where the code of a module raised an exception, and its last line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    file, line = place.filename, place.lineno
    if isinstance(error, SyntaxError):
        file, line = str(error.filename), error.lineno
    last = traceback.format_exception_only(error)[-1].strip()
    return f"the module {module} cannot be imported: {last} ({file}, line {line})"


def _of_project(module: str) -> bool:
    return module.partition(".")[0] in PACKAGES


def _kind(value: Any) -> str:
    return "function" if inspect.isroutine(value) else type(value).__name__
