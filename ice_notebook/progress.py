"""How far a loop is: `launcher.progress` counts what it passes on, and a rank tells whoever shows the run, a few times a second."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
REPORT_S = 0.1  # seconds between two reports of a loop; a panel is drawn no oftener
DESCRIPTION_CHARACTERS = 80

Bar = tuple[str, int, "int | None"]  # what is counted, how many are done, of how many


class Reporter:
    """Tells how far the loops of this process are: all that are running, one inside the other, the outermost first."""

    def __init__(self) -> None:
        self._tell: Callable[[tuple[Bar, ...]], None] | None = None
        self._pid = 0
        self._loops: list[Progress[Any]] = []

    @property
    def is_open(self) -> bool:
        """Return whether anybody is told of this thread's loops. Forked children and other threads have none to tell."""
        return self._tell is not None and os.getpid() == self._pid and threading.current_thread() is threading.main_thread()

    def open(self, tell: Callable[[tuple[Bar, ...]], None]) -> None:
        """Have loops of this process told from now on."""
        self._tell = tell
        self._pid = os.getpid()

    def begin(self, loop: Progress[Any]) -> None:
        """Take note of a loop inside those that run."""
        self._loops.append(loop)
        self.report()

    def end(self, loop: Progress[Any]) -> None:
        """Take note that a loop is over. Its end stays to be seen until something else is told."""
        self.report()
        if loop in self._loops:
            # Loops inside it that were left in the middle are over as well.
            del self._loops[self._loops.index(loop) :]

    def report(self) -> None:
        """Tell how far all loops are."""
        if self._tell is not None:
            self._tell(tuple((loop.description, loop.n, loop.total) for loop in self._loops))


reporter = Reporter()  # one a process, as the connection that it tells by


class Progress(Generic[T]):
    """An iterable that counts. Each pass over it is told as a loop of its own."""

    def __init__(self, iterable: Iterable[T], desc: str | None = None, total: int | None = None) -> None:
        self.description = (desc or "")[:DESCRIPTION_CHARACTERS]
        self.n = 0
        self.total = _length(iterable) if total is None else int(total)
        self._iterable = iterable

    def __len__(self) -> int:
        return len(self._iterable)  # type: ignore[arg-type]  # as that of what it counts: a TypeError where there is none

    def __iter__(self) -> Iterator[T]:
        self.n = 0
        if not reporter.is_open:
            yield from self._iterable
            return
        reporter.begin(self)
        clock, report = time.monotonic, reporter.report  # a step costs a look at the clock
        due = clock() + REPORT_S
        try:
            for item in self._iterable:
                yield item
                self.n += 1
                if (now := clock()) >= due:
                    due = now + REPORT_S
                    report()
        finally:
            reporter.end(self)


def eager_progress(iterable: Iterable[T], desc: str | None, total: int | None) -> Iterable[T]:
    """Return the iterable with a bar of tqdm's around it, where that is installed: for a process that is no rank."""
    if importlib.util.find_spec("tqdm") is None:
        return Progress(iterable, desc, total)
    bar: Iterable[T] = importlib.import_module("tqdm").tqdm(iterable, desc=desc, total=total)
    return bar


def _length(iterable: object) -> int | None:
    try:
        return len(iterable)  # type: ignore[arg-type]  # asked of everything; an IterableDataset's loader raises as well
    except TypeError:
        return None
