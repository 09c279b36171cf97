"""SIGTERM, SIGINT and SLURM's requeue signal: the first one stops the process in order, the second one at once."""

import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import torch

from datamodules.loading.processes import are_several

NUMBERS = (signal.SIGTERM, signal.SIGINT)
_ONE = 0.5  # seconds in which signals count as one: timeout(1) and some schedulers send two
_POLL = 0.5  # seconds between two looks at what other processes of the run got
_IDLE = 5.0  # seconds to leave in, for a process with nothing to save
_TOGETHER = 25.0  # seconds to leave in, for a process among others
_KEY = "recipes/stopped-by"


class Interrupted(SystemExit):
    """Leaves a process that was sent a signal, with 128 + its number as the code, as a shell would report it."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class Signals:
    """Notices SIGTERM and SIGINT, while it is entered as a context.

    The first signal raises ``Interrupted`` in the main thread, where ``may_leave`` allows it; elsewhere whoever trains
    asks for ``number`` and leaves when it can. The second signal ends the process at once. A thread of its own watches,
    so that this holds while the main thread waits for other processes. They learn of the signal too.

    Python code runs handlers between two operations of the main thread only. A process with nothing to save that is
    busy in one operation for more than 5 seconds is ended by the thread, and so is a process among others after 25.

    Attributes:
        number: number of the first signal; 0 before.
        may_leave: whether the main thread can be left at any moment.
        saves: whether there is something to save first.
        outcome: what is saved and which command goes on, if anything is.
        children: other processes of the run, which the second signal ends too, like the workers that load images.
        leave_with: maps a code to the code that this process leaves with.
    """

    def __init__(self) -> None:
        self.number = 0
        self.may_leave: Callable[[], bool] = lambda: True
        self.saves = False
        self.outcome = ""
        self.children: Callable[[], list[Any]] = list
        self.leave_with: Callable[[int], int] = lambda code: code
        self._also: dict[int, Callable[[], None]] = {}
        self._first = 0.0
        self._own = 0  # signals that the thread sends to the main thread
        self._raised = False
        self._pid = os.getpid()
        self._done = threading.Event()
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup = -1

    def __enter__(self) -> "Signals":
        global _current
        if threading.current_thread() is not threading.main_thread():
            return self  # Python gives signals to the main thread alone
        self._before = {number: signal.getsignal(number) for number in NUMBERS}
        self._pipe = os.pipe()
        for end in self._pipe:
            os.set_blocking(end, False)
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        self.listen()
        _current = self
        threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True, name="signals").start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _current
        if self._pipe is None:
            return
        _current = None
        self._done.set()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def listen(self) -> None:
        """Takes the signals: again where Lightning has put its own handler, which exchanges data in the handler."""
        if self._before:
            for number in (*NUMBERS, *self._also):
                signal.signal(number, self._handle)

    def also(self, number: int, at_last: Callable[[], None]) -> None:
        """Takes another signal in the same way.

        Args:
            number: number of the signal.
            at_last: called before the process leaves because of this signal.
        """
        if self._before:
            self._before.setdefault(number, signal.getsignal(number))
            self._also[number] = at_last
            self.listen()

    def tell(self) -> None:
        """Says the outcome, if there is one, and does what is left to do."""
        if self.outcome:
            self._say(self.outcome)
        self._also.pop(self.number, lambda: None)()

    def leave(self) -> None:
        """Leaves the main thread, once the other processes of the run know of the signal."""
        self._raised = True
        if _store() is not None:
            time.sleep(3 * _POLL)
        raise Interrupted(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if not self._raised and self.may_leave():
            self.leave()

    def _watch(self, arrived: int) -> None:
        while not self._done.is_set():
            select.select([arrived], [], [], _POLL)
            try:
                got = os.read(arrived, 64)
            except BlockingIOError:
                got = b""
            for number in got:
                self._got(number)
            if number := _of_others(self.number):
                self._first = self._first or time.monotonic()
                self.number = self.number or number
                self._own += 1
                signal.pthread_kill(threading.main_thread().ident or 0, number)
            self._end_if_late()

    def _got(self, number: int) -> None:
        if number not in (*NUMBERS, *self._also):
            return
        if self._own:
            self._own -= 1
        elif not self._first:
            self._first = time.monotonic()
            self.number = self.number or number
            _tell_others(number)
        elif time.monotonic() - self._first > _ONE:
            self._end("again")

    def _end_if_late(self) -> None:
        if not self._first:
            return
        passed = time.monotonic() - self._first
        if passed > _TOGETHER and _store() is not None:
            self._end(f"{_TOGETHER:.0f} seconds ago, and not every process could stop in order")
        if passed > _IDLE and not self.saves:
            self._end(f"{_IDLE:.0f} seconds ago, with nothing to save")

    def _end(self, when: str) -> None:
        self._say(f"{when}: ended")
        self.tell()
        for child in (*self.children(), *multiprocessing.active_children()):
            child.kill()
        os._exit(self.leave_with(128 + self.number))

    def _say(self, what: str) -> None:
        sys.stderr.write(f"recipes: {signal.Signals(self.number).name} {what}\n")
        sys.stderr.flush()


_current: Signals | None = None


def _in_a_fork() -> None:
    """Leaves signals to the parent: a worker that Ctrl-C reaches too goes on until the parent ends it."""
    if _current is not None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for number in _current._also:
            signal.signal(number, signal.SIG_IGN)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_fork)


def _store() -> Any:
    """What the processes of a run share; None for a process alone."""
    return torch.distributed.distributed_c10d._get_default_store() if are_several() else None


def _tell_others(number: int) -> None:
    if (store := _store()) is not None:
        store.set(_KEY, str(number))


def _of_others(mine: int) -> int:
    """The signal that another process of the run got; 0 if none did, or this one got one."""
    if mine or (store := _store()) is None:
        return 0
    try:
        return int(store.get(_KEY)) if store.check([_KEY]) else 0
    except RuntimeError:  # the process that keeps the store has ended
        return 0
