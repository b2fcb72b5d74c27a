"""Runs that only the notebook's output history still holds: after some newer ones, their values and their hold on the folder are given up.

IPython keeps every value that a cell has shown (`Out`). Without this, the values of all launches would stay in shared memory until the kernel
ends, also when one name is used for them again and again.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import weakref
from collections.abc import Iterator
from types import FrameType

from ice_notebook.host import notebook
from ice_notebook.kernel.run import Run

KEPT_RUNS = 3  # that `_`, `__` and `___` are for
LARGE_BYTES = 64 << 20  # of values that are worth a look at who holds them, which takes some 50 ms beside a loaded torch
MANY_RUNS = 20  # each of which has a descriptor, and keeps its folder


class History:
    """The runs of this process, the oldest first."""

    def __init__(self) -> None:
        self._runs: list[weakref.ref[Run]] = []
        self._looked_at: weakref.WeakKeyDictionary[Run, int] = weakref.WeakKeyDictionary()  # and found to be held, so many runs ago
        self._count = 0

    def add(self, run: Run) -> None:
        """Take note of a run that has begun, and let older ones go that nobody can reach but through the history."""
        if notebook.output_history() is None:
            return
        self._count += 1
        old = [ref for ref in self._runs if ref() is not None]
        self._runs = [*old, weakref.ref(run)]
        candidates = [ref for ref in old[: -KEPT_RUNS or None] if self._is_candidate(ref)]
        size_bytes = sum(run.kept_bytes for run in _alive(candidates))
        if size_bytes >= LARGE_BYTES or len(candidates) >= MANY_RUNS:
            for ref in candidates:
                self._let_go(ref)

    def _is_candidate(self, ref: weakref.ref[Run]) -> bool:
        run = ref()
        if run is None or not run.done() or run.is_let_go or notebook.is_bound(run):
            return False
        return self._count - self._looked_at.get(run, -MANY_RUNS) >= MANY_RUNS

    def _let_go(self, ref: weakref.ref[Run]) -> None:
        run = ref()
        if run is None:
            return
        if _is_held(run):
            self._looked_at[run] = self._count
        else:
            run.let_go()


def _alive(refs: list[weakref.ref[Run]]) -> Iterator[Run]:
    return (run for ref in refs if (run := ref()) is not None)


def _is_held(run: Run) -> bool:
    """Return whether anything but the history, and what belongs to the run, refers to it. Whatever is not known counts as somebody's."""
    own = [run.panel, *run.followers, notebook.namespace(), notebook.output_history()]
    known = {id(each) for each in own} | {id(vars(each)) for each in own if hasattr(each, "__dict__")}
    return any(id(holder) not in known for holder in gc.get_referrers(run)) or _is_a_local_variable(run)


def _is_a_local_variable(run: Run) -> bool:
    """Return whether a function that is running has a variable for it: `gc` does not see those."""
    for frame in sys._current_frames().values():
        current: FrameType | None = frame
        while current is not None:
            is_ours = str(current.f_globals.get("__name__", "")).startswith("ice_notebook.")
            if not is_ours and current.f_locals is not current.f_globals and any(v is run for v in current.f_locals.values()):
                return True
            current = current.f_back
    return False


def history() -> History:
    """Return the runs of this process; a forked child has none."""
    return _history_of(os.getpid())


@functools.cache
def _history_of(_pid: int) -> History:
    return History()
