"""Signals that come while something is done that must not be broken off in the middle: they are counted, and wake whoever waits.

An exception out of a signal handler may come between any two instructions: between a lock's `acquire` and the block that releases it, or
between the start of a process and the line that remembers it. Here a handler only takes note.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any


class Interrupts:
    """The signals that came, in their order. A handler may call `take` at any instruction."""

    def __init__(self) -> None:
        # Written to by the system's part of Python's handling of a signal, at once: one that comes just before a wait begins ends it.
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._closing = threading.Lock()
        self._handlers: dict[int, Any] = {}  # what was there before
        self._wakeup_fd: int | None = None  # likewise; None: signals are not held
        self._unseen: collections.deque[int] = collections.deque()
        self.arrived: list[int] = []

    def take(self, number: int, _frame: object = None) -> None:
        """Take note of a signal: the handler."""
        self.arrived.append(number)
        self._unseen.append(number)

    def wake(self) -> None:
        """Have a wait return; any thread may, also when nobody waits any more."""
        with self._closing, contextlib.suppress(OSError):  # closed, or enough wake-ups are under way
            os.write(self._writer, b"\0")

    def wait(self, timeout_s: float | None = None) -> int:
        """Return the next signal that came, 0 when somebody has woken the wait, or when the time is over."""
        if not self._unseen:
            select.select([self._reader], [], [], timeout_s)
            with contextlib.suppress(BlockingIOError):
                os.read(self._reader, 4096)
        return self._unseen.popleft() if self._unseen else 0

    def check(self) -> None:
        """Raise what Python would have, if a signal came that nobody has waited for."""
        if self._unseen:
            self._unseen.clear()
            raise stopped("the launch was interrupted")

    @contextlib.contextmanager
    def let_through(self) -> Iterator[None]:
        """Let signals do what they did before, as long as the user's own code runs: it may take for ever."""
        self._restore()
        try:
            self.check()
            yield
        finally:
            self._install()

    def hold(self, numbers: tuple[int, ...]) -> None:
        """Take these signals from now on, as far as they would do what they do in any program. One that is ignored, as under nohup, stays so."""
        ours = (signal.default_int_handler, signal.SIG_DFL)
        self._handlers = {number: handler for number in numbers if (handler := signal.getsignal(number)) in ours}
        self._wakeup_fd = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._install()

    def release(self) -> None:
        """Let signals do what they did before, and wait for none any more."""
        self._restore()
        self._handlers = {}
        if self._wakeup_fd is not None:
            try:
                signal.set_wakeup_fd(self._wakeup_fd)
            except (ValueError, OSError):  # whoever had it has closed it meanwhile, and another file may have its number
                signal.set_wakeup_fd(-1)
        with self._closing:  # who wakes must not write to the file that gets this number next
            for descriptor in (self._reader, self._writer):
                os.close(descriptor)
            self._reader = self._writer = -1

    def _install(self) -> None:
        for number in self._handlers:
            signal.signal(number, self.take)

    def _restore(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def held(*numbers: int) -> Iterator[Interrupts]:
    """Yield the signals that come meanwhile. Python hears signals in its main thread alone: in another one none come."""
    interrupts = Interrupts()
    try:
        if threading.current_thread() is threading.main_thread():
            interrupts.hold(numbers)
        yield interrupts
    finally:
        interrupts.release()


def stopped(why: str) -> KeyboardInterrupt:
    """Return the error of something that was interrupted, which IPython draws without the frames in between: they are ours."""
    error = KeyboardInterrupt(why)
    error._render_traceback_ = lambda: [f"KeyboardInterrupt: {why}"]  # type: ignore[attr-defined]
    return error


class Listeners:
    """Those who wait for a change. To wait is safe in a main thread that is interrupted, as `threading.Condition` is not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # in C: no signal is served between its `acquire` and the block
        self._told: list[Callable[[None], None]] = []

    def tell(self) -> None:
        """Have those who wait look again."""
        with self._lock:
            told = list(self._told)
        for tell in told:
            tell(None)

    def wait_for(self, condition: Callable[[], bool], timeout_s: float | None = None) -> bool:
        """Wait until a condition holds that somebody changes before `tell`, and return whether it does."""
        news: queue.SimpleQueue[None] = queue.SimpleQueue()
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            self._told.append(news.put)
        try:
            while not condition():
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    return condition()
                with contextlib.suppress(queue.Empty):
                    news.get(timeout=left_s)
            return True
        finally:
            with self._lock:
                self._told.remove(news.put)
