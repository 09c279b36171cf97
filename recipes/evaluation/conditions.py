"""What runs should agree in to be compared: data, test images, the protocol of the measurement."""

import re
from collections.abc import Callable, Sequence
from typing import Any

from recipes.evaluation.comparison import Group, setting
from recipes.evaluation.runs import Run


def incomparable(groups: Sequence[Group]) -> list[str]:
    """Says in a line each in what the runs should agree to be compared, and do not."""
    lines = []
    for what, of in _CONDITIONS.items():
        by_value: dict[str, list[str]] = {}
        for group in groups:
            for value in dict.fromkeys(of(run) for run in group.runs):
                if value:
                    by_value.setdefault(value, []).append(group.name)
        if len(by_value) > 1:
            lines.append(f"Different {what}: {'; '.join(f'{value} ({_few(who)})' for value, who in by_value.items())}.")
    return lines


def checkpoints(groups: Sequence[Group]) -> str:
    """Says in a line of which state of the runs the measures are."""
    kept: dict[str, list[str]] = {}
    for group in groups:
        for monitor in dict.fromkeys(run.best for run in group.runs):
            state = f"the best checkpoint by {monitor}" if monitor else "the last checkpoint"
            kept.setdefault(state, []).append(group.name)
    which = [state + f" ({_few(names)})" * (len(kept) > 1) for state, names in kept.items()]
    return f"Measures are those of {', and of '.join(which)}."


def _few(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _data(run: Run) -> str:
    """The DataModule and those that it wraps, with folder and size of the images."""
    chosen = [key for key in run.settings if re.fullmatch(r"data((\.base)*)", key)]
    words = [setting(run.settings[key]) for key in chosen if run.settings[key]]
    last = chosen[-1] if chosen else "data"
    own = [run.settings.get(f"{last}.{name}") for name in ("root", "size", "image_size")]
    return " of ".join(words) + "".join(f" {value}" for value in own if value is not None)


def _test_images(run: Run) -> str:
    protocol = run.reports.get("evaluation", {}).get("protocol", {})
    images = protocol.get("test_images", run.reports.get("classes", {}).get("images"))
    return "" if images is None else f"{images:,}"


def _continual(name: str) -> Callable[[Run], str]:
    def of(run: Run) -> str:
        value = run.reports.get("continual", {}).get(name)
        return value if isinstance(value, str) else "" if value is None else _tasks(value)

    return of


def _tasks(value: Any) -> str:
    return str(value) if isinstance(value, int) else " | ".join(", ".join(classes) for classes in value)


def _protocol(name: str) -> Callable[[Run], str]:
    def of(run: Run) -> str:
        reports = [run.reports[report]["protocol"] for report in ("evaluation", "continual") if report in run.reports]
        value = next((protocol[name] for protocol in reports if name in protocol), "")
        return ", ".join(f"{key} {each}" for key, each in value.items()) if isinstance(value, dict) else str(value)

    return of


def _split(run: Run) -> str:
    """The settings that choose which images are test images."""
    keys = [key for key in run.settings if re.search(r"^data\.(.*\.)?(test_fraction|val_fraction|\w*seed|fold)$", key)]
    return ", ".join(f"{key} {setting(run.settings[key])}" for key in keys)


_CONDITIONS: dict[str, Callable[[Run], str]] = {  # what runs should agree in
    "data": _data,
    "images to measure on": _protocol("split"),
    "numbers of test images": _test_images,
    "splits": _split,
    "classes": _protocol("num_classes"),
    "neighbours for kNN": _protocol("knn"),
    "scenarios": _continual("scenario"),
    "tasks": _continual("tasks"),
    "numbers of tasks learned": _continual("tasks_learned"),
}
