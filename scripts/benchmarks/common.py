"""What several benchmarks share."""

import importlib.metadata
import logging
import statistics
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
Runs = dict[str, list[float]]


def versions(*names: str) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", *names)}


def take_turns(runs: dict[str, Callable[[], float]], rounds: int, warmup: int = 1) -> Runs:
    """What each run measures in each round; the runs take turns, so that a busy machine is busy for all."""
    measured: Runs = {name: [] for name in runs}
    for turn in range(warmup + rounds):
        for name, run in runs.items():
            value = run()
            if turn >= warmup:
                measured[name].append(round(value, 6))
    return measured


def medians(runs: Runs) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in runs.items()}


def ratio(runs: Runs, name: str, other: str) -> float:
    """The median over the rounds of one run's number over another's: what is slow for a round is slow for both."""
    return round(statistics.median(a / b for a, b in zip(runs[name], runs[other])), 4)


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The folder of a temporary worktree that has the code of a commit."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        code = Path(folder) / "code"
        subprocess.run([*git, "add", "--detach", str(code), commit], check=True, capture_output=True)
        try:
            yield code
        finally:
            subprocess.run([*git, "remove", "--force", str(code)], check=True)


def new_peak() -> None:
    """Has Linux take the memory that this process uses now for its peak."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_megabytes() -> float:
    return _status("VmHWM")


def megabytes_in_use() -> float:
    return _status("VmRSS")


def _status(field: str) -> float:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024 / 1e6


def quiet() -> None:
    """Leaves only the benchmark's own lines."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def simclr(**arguments: Any) -> Any:
    """SimCLR as in the config simclr-cifar10-small, but for the arguments."""
    import torch

    from recipes import SimCLR
    from recipes.augment import SimCLRViews
    from recipes.nn import ResNet

    defaults = {
        "encoder": ResNet(20),
        "projection_hidden_dim": 256,
        "views": SimCLRViews(strength=0.5, blur=0.0, scale=(0.2, 1.0)),
        "optimizer": lambda p: torch.optim.AdamW(p, lr=1e-3),
        "scheduler": None,
        "lr_batch_size": None,
    }
    return SimCLR(**{**defaults, **arguments})


def trainer(**arguments: Any) -> Any:
    """A Trainer on the CPU in bf16-mixed that writes nothing, but for the arguments."""
    from lightning.pytorch import Trainer

    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "precision": "bf16-mixed",
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
    }
    return Trainer(**{**defaults, **arguments})
