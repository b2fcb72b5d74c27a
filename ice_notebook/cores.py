"""Whether this machine has a processor to spare: what gets ready for later must not slow down what runs now."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import psutil

LOOK_S = 0.25  # between two looks: shorter ones take the gap between two batches for leisure
_IDLE_CORES = 0.9  # some time always goes to others


class Leisure:
    """Tells whether a core was idle since the last look."""

    def __init__(self) -> None:
        self._idle_s, self._at = _idle_s(), time.monotonic()

    def look(self) -> bool:
        """Return whether there was a core to spare; False when the last look was less than LOOK_S ago."""
        now = time.monotonic()
        if now - self._at < LOOK_S:
            return False
        before, since = self._idle_s, self._at
        self._idle_s, self._at = _idle_s(), now
        return (self._idle_s - before) / (now - since) >= _IDLE_CORES


def wait_for_leisure(is_over: Callable[[float], bool], at_most_s: float) -> bool:
    """Wait until a core is to spare, `at_most_s` seconds; return False as soon as it is no longer wanted.

    `is_over(seconds)` waits that long at most, and returns True when nobody wants this any more.
    """
    leisure, until = Leisure(), time.monotonic() + at_most_s
    while time.monotonic() < until:
        if is_over(LOOK_S):
            return False
        if leisure.look():
            break
    return True


def _idle_s() -> float:
    """Return for how many seconds the processors that this process may use have been idle, all together; 0 where nobody says."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        times = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError):  # a hardened /proc
        return 0.0
    return float(sum(each.idle for number, each in enumerate(times) if mine is None or number in mine))
