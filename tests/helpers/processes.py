"""Real processes for tests: forked from a server that has imported everything, so that each starts in a moment."""

import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.helpers.warm"])


def run(function: Callable[..., Any], *args: Any, processes: int = 1, timeout: float = 200) -> list[Any]:
    """Calls a function of a module, with the same arguments, in fresh processes of one thread each.

    Several are joined by gloo, in ``torch.distributed`` and for a Trainer with so many ``devices`` and
    ``strategy="ddp"``, as by torchrun.

    Returns:
        What the calls gave, by rank; ``signal.SIGKILL`` for a process that killed itself, and the code of one that left
        after another signal.

    Raises:
        AssertionError: with its traceback, if one failed; the others are ended.
    """
    with tempfile.TemporaryDirectory() as folder:
        pipes, children = [], []
        for rank in range(processes):
            ours, theirs = _CONTEXT.Pipe(duplex=False)
            settings = (rank, processes, Path(folder) / "store", dict(os.environ))
            child = _CONTEXT.Process(target=_enter, args=(theirs, settings, function, args), daemon=False)
            child.start()
            theirs.close()
            pipes.append(ours)
            children.append(child)
        try:
            return _collect(pipes, children, timeout)
        finally:
            for child in children:
                child.kill()
                child.join()


def started(function: Callable[..., Any], *args: Any, output: Path) -> Any:
    """Starts a process that calls a function: with one thread, and with what it prints in a file."""
    process = _CONTEXT.Process(target=_call, args=(dict(os.environ), output, function, args), daemon=False)
    process.start()
    return process


def _call(environment: dict[str, str], output: Path, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)
    with output.open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    function(*args)


def _collect(pipes: list[Any], children: list[Any], timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    while waiting := [rank for rank in range(len(pipes)) if rank not in results]:
        # a pipe stays open as long as a worker lives that inherited it
        ready = wait([end for rank in waiting for end in (pipes[rank], children[rank].sentinel)], timeout)
        assert ready, f"processes {waiting} did not end in {timeout} s"
        for rank in waiting:
            pipe, child = pipes[rank], children[rank]
            if pipe not in ready and child.sentinel not in ready:
                continue
            try:
                if not pipe.poll():
                    raise EOFError
                failure, results[rank] = pipe.recv()
            except EOFError:
                child.join()
                code = child.exitcode
                assert code == -signal.SIGKILL or code > 128, f"process {rank} ended: {code}"
                failure, results[rank] = None, signal.SIGKILL if code < 0 else code
            assert failure is None, f"process {rank}:\n{failure}"
    return [results[rank] for rank in range(len(pipes))]


def _enter(
    pipe: Any,
    settings: tuple[int, int, Path, dict[str, str]],
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    rank, processes, store, environment = settings
    os.environ.clear()
    os.environ.update(environment)
    import torch
    from lightning.pytorch.utilities import rank_zero_only

    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as usual; else workers get a server that outlives a kill
    rank_zero_only.rank = rank  # Lightning reads the environment where it is imported, which the server did
    try:
        if processes > 1:
            os.environ.update(
                {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "GROUP_RANK": "0",
                    "WORLD_SIZE": str(processes),
                    "LOCAL_WORLD_SIZE": str(processes),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": "1",  # asked for, and not used
                    "TORCHELASTIC_RUN_ID": "tests",  # by which Lightning knows that all processes are there
                }
            )
            torch.distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=processes)
        result = (None, function(*args))
    except BaseException:
        result = (traceback.format_exc(), None)
    for child in multiprocessing.active_children():  # workers that load images
        child.kill()
    pipe.send(result)  # the process ends by os._exit: gloo's threads may still hold Python objects
