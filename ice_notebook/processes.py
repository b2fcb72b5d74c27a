"""Processes from the outside: whose they are, what they use, how they are ended. Used by the agent and by the kernel.

No process is ever ended by its name. A run's processes are known by pidfd, and what escaped from them by a marker that everything
started for the run carries in the environment it was started with.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import psutil

MARKER = "ICE_NOTEBOOK_MARKER"  # the environment variable; its value is <marker of the run>:<serial of the process>

ACKNOWLEDGE_WAIT_S = 0.2  # a rank that runs Python answers an interrupt in milliseconds
IDLE_CPU_S = 0.01  # one clock tick: a rank that used no more than this since it was asked is blocked, not computing
KILL_WAIT_S = 10.0  # SIGKILL needs no consent; a process in uninterruptible sleep may still take a while
TRACKER_WAIT_S = (
    2.0  # multiprocessing's resource tracker unlinks a dead rank's semaphores, then leaves by itself; one may still be starting
)
_SWEEP_INTERVAL_S = 0.01
_SWEEP_ROUNDS = 50


def start_time(pid: int) -> float | None:
    """Return when a process started, in seconds since the epoch, or None if there is none: pid and start time name a process for good."""
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def own_start_time() -> float:
    """Return when this process started, in seconds since the epoch; 0 where nobody says."""
    return _own_start_time(os.getpid())


@functools.cache
def _own_start_time(pid: int) -> float:  # a forked child has another pid
    return start_time(pid) or 0.0


def is_alive(pid: int, started: float) -> bool:
    """Return whether the process that had this pid and start time still runs."""
    now = start_time(pid)
    if now is None or abs(now - started) > 1.0:
        return False
    with contextlib.suppress(psutil.Error):
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    return False


def cpu_time(pid: int) -> float:
    """Return the seconds of CPU that a process has used, 0 when it is gone."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)


def out_of_memory_kills() -> int:
    """Return how many processes this machine has killed for want of memory since it started; 0 when it does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as counters:
            for line in counters:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass  # not Linux, or a hardened /proc
    return 0


# ---- the sweep -----------------------------------------------------------------------------------------------------------------------


def new_marker() -> str:
    """Return a marker that nothing else carries."""
    return secrets.token_hex(8)


def find_marked(*markers: str) -> list[int]:
    """Return the pids of living processes, but this one, that carry one of the markers, alone or with `:serial` behind it."""
    return [pid for pid in _pids() if pid != os.getpid() and _carries(pid, markers)]


def sweep(*markers: str, with_children: bool = False, looks: int = 1) -> int:
    """Kill whatever carries one of the markers, whatever its session, group or parent, and return how many processes that were.

    `with_children` adds the children of this process: an agent adopts what ranks leave behind, and a program that was started with an
    environment of its own carries no marker. It is over when so many `looks` in a row have found nothing: a process has no environment for
    the blink of an eye in which it becomes another program.

    It repeats, because a dying tree may still fork, and works by pidfd, so that a pid taken over by a stranger is never hit. Resource
    trackers get TRACKER_WAIT_S to clean up after their owners. Orphans that have become children of this process are reaped one by one:
    a wait for any child would steal the exit codes of others.
    """
    killed: set[int] = set()
    trackers_until = time.monotonic() + TRACKER_WAIT_S
    looks_left = looks
    for _ in range(_SWEEP_ROUNDS):
        left = find_marked(*markers)
        left += [pid for pid in _children() if pid not in left] if with_children else []
        spared = {pid for pid in left if _is_resource_tracker(pid)} if time.monotonic() < trackers_until else set()
        for pid in left:
            if pid not in spared and _kill(pid, markers, or_child=with_children):
                killed.add(pid)
        for pid in killed:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        looks_left = looks if left else looks_left - 1
        if not looks_left:
            break
        time.sleep(_SWEEP_INTERVAL_S)  # the dead leave /proc by themselves; nothing announces it for processes that are not ours
    return len(killed)


def has_memory(pid: int) -> bool:
    """Return whether a process can still run: one that has died has none, and no environment, before the system lets go of it."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return bool(environ.read(1))
    except OSError:
        return False


def pid_of(pidfd: int) -> int:
    """Return the number of the process that a descriptor is for, -1 when it has been reaped."""
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as info:
        return int(next(line for line in info if line.startswith("Pid:")).split()[1])


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def marker_of(pid: int) -> str | None:
    """Return the marker of the run that a process was started for; None when it was for none, or is not ours to look at."""
    carried = _carried(pid)
    return carried.partition(":")[0] if carried is not None else None


def _carried(pid: int) -> str | None:
    prefix = f"{MARKER}=".encode()
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            content = environ.read()
    except OSError:  # gone meanwhile, or not ours to read
        return None
    if prefix not in content:  # that of nearly every process on a machine
        return None
    return next((variable.removeprefix(prefix).decode() for variable in content.split(b"\0") if variable.startswith(prefix)), None)


def _carries(pid: int, markers: Collection[str]) -> bool:
    carried = _carried(pid)
    if carried is None:
        return False
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            is_zombie = stat.read().rpartition(b")")[2].split()[0] == b"Z"
    except (OSError, IndexError):  # gone meanwhile
        return False
    return not is_zombie and any(carried == marker or carried.startswith(f"{marker}:") for marker in markers)


def _children() -> list[int]:
    """Return the living children of this process."""
    return [pid for pid in _pids() if _is_child(pid)]


def _is_child(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            state, parent = stat.read().rpartition(b")")[2].split()[:2]
    except (OSError, ValueError):  # gone meanwhile
        return False
    return state not in {b"Z", b"X"} and int(parent) == os.getpid()


def _is_resource_tracker(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            return b"resource_tracker" in command.read()
    except OSError:
        return False


def _kill(pid: int, markers: Collection[str], *, or_child: bool) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Asked again with the pidfd open: from here on the number cannot come to mean another process.
        if not (_carries(pid, markers) or (or_child and _is_child(pid))):
            return False
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except OSError:
        return False
    finally:
        os.close(pidfd)
    return True


# ---- the stop ladder -------------------------------------------------------------------------------------------------------------------


class Stoppable(Protocol):
    """A rank as the ladder sees it. `pidfd` stays open, and the process unreaped, until the ladder is done."""

    pid: int
    pidfd: int

    @property
    def has_exited(self) -> bool:
        """Return whether the process has ended."""

    @property
    def has_acknowledged(self) -> bool:
        """Return whether the rank has said that it unwinds after an interrupt."""

    @property
    def can_be_asked(self) -> bool:
        """Return whether the user's code runs in it under our interrupt handler."""


Wait = Callable[[Callable[[], bool], float], object]


def stop_ladder(ranks: Sequence[Stoppable], wait: Wait, *, ask: bool, grace_s: float, is_urgent: Callable[[], bool]) -> None:
    """End ranks: ask, terminate, kill. Returns when none is left.

    Each rung goes to what the one before left over. Asking is SIGINT to the rank alone, never to its group, whose DataLoader workers
    inherit the handler; it leaves `grace_s` to unwind. A rank that is blocked in C++ can not answer and is terminated at once, one that
    computes may still answer. At the end of `grace_s`, or as soon as `is_urgent()`, whole groups are killed.

    Args:
        ranks: the ranks to end.
        wait: `wait(condition, timeout_s)` returns when the condition holds or the time is over, whichever is first.
        ask: begin with an interrupt; without it, with SIGTERM.
        grace_s: seconds from the first signal to SIGKILL.
        is_urgent: whether the person behind it has pressed again.
    """
    deadline = time.monotonic() + grace_s

    def alive() -> list[Stoppable]:
        return [rank for rank in ranks if not rank.has_exited]

    def over() -> bool:
        return is_urgent() or not alive()

    asked = [rank for rank in alive() if ask and rank.can_be_asked]
    for rank in asked:
        _signal(rank, signal.SIGINT)
    for rank in alive():
        if rank not in asked:
            _signal(rank, signal.SIGTERM)
    unheard = asked
    # Looked at again and again: one that is blocked may have used a little time just before it was.
    while unheard and not over() and time.monotonic() < deadline:
        cpu_before = {rank.pid: cpu_time(rank.pid) for rank in unheard}
        wait(lambda: over() or not _unheard(asked), min(ACKNOWLEDGE_WAIT_S, deadline - time.monotonic()))
        unheard = _unheard(unheard)
        blocked = [rank for rank in unheard if cpu_time(rank.pid) - cpu_before[rank.pid] <= IDLE_CPU_S]
        for rank in blocked:
            _signal(rank, signal.SIGTERM)
        unheard = [rank for rank in unheard if rank not in blocked]
    wait(over, max(0.0, deadline - time.monotonic()))
    for rank in alive():
        kill_group(rank)
    wait(lambda: not alive(), KILL_WAIT_S)


def _unheard(ranks: Sequence[Stoppable]) -> list[Stoppable]:
    return [rank for rank in ranks if not rank.has_acknowledged and not rank.has_exited]


def kill_group(rank: Stoppable) -> None:
    """Kill a rank and all that stayed in its process group. The rank must not have been reaped, so that its number is still its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(rank.pid, signal.SIGKILL)
    _signal(rank, signal.SIGKILL)


def _signal(rank: Stoppable, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(rank.pidfd, number)
