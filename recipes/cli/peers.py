"""The processes of a run: the first that fails says so, and all of them end."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed

_POLL = 0.5  # seconds between two looks at whether another process has failed
_PATIENCE = 15.0  # seconds that a process which fails waits for the others, which may still start


class Peers:
    """Tells the other processes of a run that this one has failed, and ends this one when another has.

    A device that waits for another one in an exchange cannot be told anything by the exchange. The processes therefore
    also share a store of torch, the one that they find each other by, and a thread of each process watches it. The
    number in the store counts the processes that know of a failure; the process that counts first is the one that
    failed, and the only one that prints.

    Args:
        end: ends this process with a code, from any thread.
    """

    def __init__(self, end: Callable[[int], None]) -> None:
        self._end = end
        self._environment = _environment()
        self._count = _processes(self._environment)
        self._key = f"recipes/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self._knows = threading.Lock()
        self._shared: Any = None
        self._done = threading.Event()

    def __enter__(self) -> "Peers":
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()

    @property
    def name(self) -> str:
        """Rank and host of this process; empty for a process alone."""
        return f"rank {rank_zero_only.rank} on {socket.gethostname()}" if self._several() else ""

    def watch(self, trainer: Trainer) -> None:
        """Watches for failures of the processes that a Trainer has."""
        environment = getattr(trainer.strategy, "cluster_environment", None)
        if trainer.world_size > 1 and environment is not None:
            self._environment, self._count = environment, trainer.world_size
            threading.Thread(target=self._watch, daemon=True, name="peers").start()

    def failed(self, code: int) -> bool:
        """Tells the others of a failure of this process; returns whether it is the first that fails.

        Args:
            code: the code that the processes leave with.
        """
        if not self._several():
            return True
        if not self._knows.acquire(blocking=False):  # the thread has seen that another process failed
            return False
        self._shared = self._store(time.monotonic() + _PATIENCE)
        if self._shared is None:
            return True
        with suppress(RuntimeError):  # the process that keeps the store has ended
            self._shared.set(f"{self._key}/code", str(code))
            return int(self._shared.add(self._key, 1)) == 1
        return True

    def wait(self) -> None:
        """Waits until the other processes know of the failure: this process may keep the store."""
        until = time.monotonic() + _PATIENCE
        with suppress(RuntimeError):
            while self._shared and int(self._shared.add(self._key, 0)) < self._count and time.monotonic() < until:
                time.sleep(_POLL / 5)

    def _several(self) -> bool:
        """Whether there are other processes: Lightning starts those of one machine when the Trainer runs."""
        here = isinstance(self._environment, LightningEnvironment) and "MASTER_ADDR" not in os.environ
        return self._count > 1 and not here

    def _watch(self) -> None:
        store = None
        while not self._done.wait(_POLL):
            try:
                store = store or (self._store() if self._several() else None)
                if store is None or not store.check([self._key]) or not self._knows.acquire(blocking=False):
                    continue
                code = int(store.get(f"{self._key}/code"))
                store.add(self._key, 1)
            except RuntimeError:
                store = None
                continue
            self._end(code)

    def _store(self, until: float = 0.0) -> Any:
        """A connection of its own to the store that the processes share; None if there is none ``until`` then.

        The first process keeps the store, unless torchrun does.
        """
        if distributed.is_available() and distributed.is_initialized():
            store = distributed.distributed_c10d._get_default_store()
            while isinstance(store, distributed.PrefixStore):
                store = store.underlying_store
            return store.clone() if isinstance(store, distributed.TCPStore) else store
        place = self._environment.main_address, self._environment.main_port
        keeps = rank_zero_only.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        while not (reached := _answers(*place)) and not keeps and time.monotonic() < until:
            time.sleep(_POLL)
        if not reached and not (keeps and until):
            return None
        with suppress(RuntimeError):
            options: Any = {"wait_for_workers": False, "multi_tenant": True, "timeout": timedelta(seconds=_PATIENCE)}
            return distributed.TCPStore(*place, is_master=not reached, **options)


def note_for_torchrun(message: str) -> None:
    """Leaves the message where torchrun looks for the first error of a run, which it repeats."""
    if (path := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
        now = int(time.time()) - 1  # in whole seconds: the others may end within the same one
        with suppress(OSError), open(path, "w") as file:
            json.dump({"message": {"message": message, "extraInfo": {"timestamp": str(now)}}}, file)


def _environment() -> ClusterEnvironment:
    """How the processes of this run were started, before there is a Trainer that knows."""
    with suppress(RuntimeError):  # of SLURM: variables that contradict each other, which the Trainer refuses
        for kind in (TorchElasticEnvironment, SLURMEnvironment):
            if kind.detect():
                return kind()
    return LightningEnvironment()


def _processes(environment: ClusterEnvironment) -> int:
    if not isinstance(environment, LightningEnvironment):
        return environment.world_size()
    further_machines = {"MASTER_ADDR", "NODE_RANK"} <= os.environ.keys() and "LOCAL_RANK" not in os.environ
    return int(os.environ.get("WORLD_SIZE", 2 if further_machines else 1))  # at least: the Trainer knows


def _answers(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=1.0):
        return True
    return False
