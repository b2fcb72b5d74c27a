"""How far a loop is: `launcher.progress` counts what it passes on, and a rank tells whoever shows the run, a few times a second."""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
REPORT_S = 0.1  # seconds between two looks at the loops; a panel is drawn no oftener
DESCRIPTION_CHARACTERS = 80

Bar = tuple[str, int, "int | None"]  # what is counted, how many are done, of how many


class Reporter:
    """Tells how far the loops of this process are: all that are running, one inside the other, the outermost first.

    A thread looks at them, so that a step costs nothing but its count, and a loop that is stuck is told with the step it is stuck in.
    """

    def __init__(self) -> None:
        self._tell: Callable[[tuple[Bar, ...]], None] | None = None
        self._pid = 0
        self._loops: list[Progress[Any]] = []
        self._told: tuple[Bar, ...] = ()
        self._telling = threading.Lock()
        self._is_over = threading.Event()

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
        if len(self._loops) == 1:
            self._report()
            self._is_over = threading.Event()
            threading.Thread(target=self._watch, args=[self._is_over], name="ice-progress", daemon=True).start()

    def end(self, loop: Progress[Any]) -> None:
        """Take note that a loop is over. The end of the outermost stays to be seen until something else is told."""
        if self._loops[:1] == [loop]:
            self._is_over.set()
            del self._loops[1:]
            self._report()
        if loop in self._loops:
            # Loops inside it that were left in the middle are over as well.
            del self._loops[self._loops.index(loop) :]

    def _watch(self, is_over: threading.Event) -> None:
        while not is_over.wait(REPORT_S):
            self._report()

    def _report(self) -> None:
        """Tell how far all loops are, if that is news."""
        assert self._tell is not None
        with self._telling:
            bars = tuple((loop.description, loop.n, loop.total) for loop in tuple(self._loops))
            if bars and bars != self._told:
                self._told = bars
                self._tell(bars)


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
        try:
            for item in self._iterable:
                yield item
                self.n += 1
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
