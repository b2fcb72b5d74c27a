"""Who gets this machine's processors: what gets ready for later must not slow down what runs now, and ranks not what shows them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable

import psutil

LOOK_S = 0.25  # between two looks: shorter ones take the gap between two batches for leisure
_WEIGHT_PER_NICE = 1.25  # of one step, by man 7 sched
LEAST_NICE = 19  # what weighs least
ASK_AGAIN_S = 0.1
_BUSY_SHARE = 0.1  # of a core that counts as idle: some time always goes to others


class Leisure:
    """Tells how many cores were idle since the last look."""

    def __init__(self) -> None:
        self._idle_s, self._at = _idle_s(), time.monotonic()

    def look(self) -> int:
        """Return how many cores there were to spare; 0 when the last look was less than LOOK_S ago."""
        now = time.monotonic()
        if now - self._at < LOOK_S:
            return 0
        before, since = self._idle_s, self._at
        self._idle_s, self._at = _idle_s(), now
        return int((self._idle_s - before) / (now - since) + _BUSY_SHARE)


def wait_for_leisure(is_over: Callable[[float], bool], at_most_s: float) -> int:
    """Wait until cores are to spare, `at_most_s` seconds, and return how many are, 1 after that time; 0 as soon as it is no longer wanted.

    `is_over(seconds)` waits that long at most, and returns True when nobody wants this any more.
    """
    leisure, until = Leisure(), time.monotonic() + at_most_s
    while time.monotonic() < until:
        if is_over(LOOK_S):
            return 0
        if n_cores := leisure.look():
            return n_cores
    return 1


def weigh(pid: int, nice: int) -> bool:
    """Have the session that a process leads weigh as `nice` says when processors are short; False: to be asked again later.

    Linux divides processors among sessions first (`sched_autogroup`, man 7 sched): eight ranks that never rest would get eight shares where
    notebook server and browser get one, and the page would stand still. Ordinary users may say this to the system once every ASK_AGAIN_S.
    """
    try:
        with open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as group:
            group.write(str(nice))
    except BlockingIOError:
        return False
    except OSError:  # a system that has no such thing: it runs with the share that it has
        return True
    return True


def nice_of_part(count: int) -> int:
    """Return the niceness with which a session weighs `1 / count` of one."""
    return min(round(math.log(max(1, count), _WEIGHT_PER_NICE)), LEAST_NICE)


def _idle_s() -> float:
    """Return for how many seconds the processors that this process may use have been idle, all together; 0 where nobody says."""
    mine = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    try:
        times = psutil.cpu_times(percpu=True)
    except (OSError, RuntimeError):  # a hardened /proc
        return 0.0
    return float(sum(each.idle for number, each in enumerate(times) if mine is None or number in mine))
