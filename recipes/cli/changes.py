"""Compares the configuration of a resumed run with that of its checkpoint."""

from collections.abc import Iterator, Mapping
from typing import Any

_OF_A_COMMAND = {"name", "runs", "ckpt_path", "weights_only", "verbose", "return_predictions", "import", "config"}
_PLACES = {"save_dir", "dirpath", "dir"}  # every run has its own
_FREE = ("model.optimizer", "model.scheduler", "model.lr_batch_size", "data.batch_size", "data.num_workers")


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Finds the options that differ.

    Args:
        then: whole configuration in the checkpoint.
        now: whole configuration of this run.

    Returns:
        For each option that both have and that differs, its name without ``init_args``, and "old → new". For an object
        of another class, only the class.
    """
    return {name: f"{_shown(old)} → {_shown(new)}" for name, old, new in _differing(then, now)}


def told(changed: Mapping[str, str]) -> str:
    """Returns one line that names all changes."""
    return f"changed by this resume: {_listed(changed)}" if changed else "this resume changes no option"


def refusal(changed: Mapping[str, str], reason: object) -> str:
    """Returns the message for a checkpoint that does not fit: which options have changed, and the reason."""
    named = {
        name: values for name, values in changed.items() if name.startswith(("model", "data")) and not _is_free(name)
    }
    if not named:
        return str(reason)
    which = "" if len(named) == 1 else "one of "
    return f"{which}{_listed(named)} cannot change on a resume: {reason}"


def _is_free(name: str) -> bool:
    return any(f"{name}.".startswith(f"{free}.") for free in _FREE)


def _listed(changed: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({values})" for name, values in changed.items())


def _differing(then: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        if then.get("class_path") != now.get("class_path"):
            yield name, then, now
            return
        for key in (key for key in now if key in then):
            if (not name and key in _OF_A_COMMAND) or (name and key in _PLACES):
                continue
            inner = name if key in ("init_args", "dict_kwargs") else f"{name}.{key}" if name else key
            yield from _differing(then[key], now[key], inner)
    elif _objects(then) and _objects(now) and len(then) == len(now):
        for number, (old, new) in enumerate(zip(then, now)):
            yield from _differing(old, new, f"{name}.{number}" if len(now) > 1 else name)
    elif then != now:
        yield name, then, now


def _objects(values: Any) -> bool:
    return isinstance(values, list) and any(isinstance(value, Mapping) for value in values)


def _shown(value: Any) -> str:
    if isinstance(value, Mapping) and "class_path" in value:
        return str(value["class_path"]).rpartition(".")[2]
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
