"""Processes from the outside: whose they are, what they use, how they are ended. Used by the agent and by the kernel.

No process is ever ended by its name. A run's processes are known by pidfd, and what escaped from them by a marker that everything
started for the run carries in the environment it was started with.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Protocol

import psutil

from ice_notebook.host.identities import stat_of

MARKER = "ICE_NOTEBOOK_MARKER"  # the environment variable; its value is <marker of the run>:<serial of the process>

ACKNOWLEDGE_WAIT_S = 0.2  # a rank that runs Python answers an interrupt in milliseconds
IDLE_CPU_S = 0.01  # one clock tick: a rank that used no more than this since it was asked is blocked, not computing
KILL_WAIT_S = 10.0  # SIGKILL needs no consent; a process in uninterruptible sleep may still take a while
TRACKER_WAIT_S = (
    2.0  # multiprocessing's resource tracker unlinks a dead rank's semaphores, then leaves by itself; one may still be starting
)
GROUP_LOOK_S = 0.05  # nothing announces the end of processes that are not ours
_SWEEP_INTERVAL_S = 0.01
_SWEEP_ROUNDS = 50


def caught_signals(pid: int) -> set[int]:
    """Return the signals for which a process has a handler, Python's among them; none when it is gone, or not ours to look at."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            mask = next((int(line.split()[1], 16) for line in status if line.startswith("SigCgt:")), 0)
    except OSError:
        return set()
    return {bit + 1 for bit in range(mask.bit_length()) if mask >> bit & 1}


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
    found = stat_of(pid)
    return (
        found is not None and found[0] != b"Z" and any(carried == marker or carried.startswith(f"{marker}:") for marker in markers)
    )


def has_members(group: int) -> bool:
    """Return whether a living process is in a process group."""
    return any((found := stat_of(pid)) is not None and found[0] not in {b"Z", b"X"} and int(found[2]) == group for pid in _pids())


def _children() -> list[int]:
    """Return the living children of this process."""
    return [pid for pid in _pids() if _is_child(pid)]


def _is_child(pid: int) -> bool:
    found = stat_of(pid)
    return found is not None and found[0] not in {b"Z", b"X"} and int(found[1]) == os.getpid()


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
    is_program: bool  # not Python: it is signalled with its group, as a shell does it, because it may be a shell itself

    @property
    def has_exited(self) -> bool:
        """Return whether the process has ended."""

    @property
    def has_acknowledged(self) -> bool:
        """Return whether the rank has said that it unwinds after an interrupt."""

    def handles(self, number: int) -> bool:
        """Return whether it has a handler of its own for a signal."""

    def ask(self) -> None:
        """Have the interrupt that follows known as the agent's."""

    @property
    def can_be_asked(self) -> bool:
        """Return whether the user's code runs in it under our interrupt handler."""


Wait = Callable[[Callable[[], bool], float], object]


def stop_ladder(
    ranks: Sequence[Stoppable], wait: Wait, *, by: signal.Signals | None, grace_s: float, is_urgent: Callable[[], bool]
) -> None:
    """End ranks: ask, terminate, kill. Returns when none is left.

    Each rung goes to what the one before left over. A rank that has a handler of its own for the signal that stops the run gets that signal,
    and the handler is its answer. Any other is asked by SIGINT, alone and never with its group, whose DataLoader workers inherit the handler;
    it has `grace_s` to unwind. A rank that is blocked in C++ can not answer and is terminated at once, one that computes may still answer.
    At the end of `grace_s`, or as soon as `is_urgent()`, whole groups are killed.

    Args:
        ranks: the ranks to end.
        wait: `wait(condition, timeout_s)` returns when the condition holds or the time is over, whichever is first.
        by: the signal that stops the run: SIGINT for a person, or the one that a scheduler sent. None does not ask, and begins with SIGTERM.
        grace_s: seconds from the first signal to SIGKILL.
        is_urgent: whether the person behind it has pressed again.
    """
    deadline = time.monotonic() + grace_s

    def alive() -> list[Stoppable]:
        return [rank for rank in ranks if not rank.has_exited]

    def over() -> bool:
        return is_urgent() or not alive()

    asked = []
    for rank in alive():
        if (own := _own_way(rank, by)) is not None:
            signal_rank(rank, own)
        elif by is not None and rank.can_be_asked:
            asked.append(rank)
            rank.ask()
            signal_rank(rank, signal.SIGINT)
        else:
            signal_rank(rank, signal.SIGTERM)
    unheard = asked
    # Looked at again and again: one that is blocked may have used a little time just before it was.
    while unheard and not over() and time.monotonic() < deadline:
        cpu_before = {rank.pid: cpu_time(rank.pid) for rank in unheard}
        wait(lambda: over() or not _unheard(asked), min(ACKNOWLEDGE_WAIT_S, deadline - time.monotonic()))
        unheard = _unheard(unheard)
        blocked = [rank for rank in unheard if cpu_time(rank.pid) - cpu_before[rank.pid] <= IDLE_CPU_S]
        for rank in blocked:
            signal_rank(rank, signal.SIGTERM)
        unheard = [rank for rank in unheard if rank not in blocked]
    wait(over, max(0.0, deadline - time.monotonic()))
    # What a program has started, a shell's command say, has the same time as the program.
    while any(has_members(rank.pid) for rank in ranks if rank.is_program) and not is_urgent() and time.monotonic() < deadline:
        wait(is_urgent, GROUP_LOOK_S)
    for rank in alive():
        kill_group(rank)
    wait(lambda: not alive(), KILL_WAIT_S)


def _own_way(rank: Stoppable, by: signal.Signals | None) -> signal.Signals | None:
    """Return the signal that stops the run if the rank has a handler of its own for it. Every Python has one for SIGINT: that is asked by."""
    if by is None or (by is signal.SIGINT and not rank.is_program):
        return None
    # A hang-up ends programs as SIGTERM does. A shell has a handler for SIGINT whatever its script says: what the script says on SIGTERM comes first.
    ways = (by, signal.SIGTERM) if by is not signal.SIGINT else (signal.SIGTERM, by)
    return next((way for way in ways if rank.handles(way)), None)


def _unheard(ranks: Sequence[Stoppable]) -> list[Stoppable]:
    return [rank for rank in ranks if not rank.has_acknowledged and not rank.has_exited]


def kill_group(rank: Stoppable) -> None:
    """Kill a rank and all that stayed in its process group. The rank must not have been reaped, so that its number is still its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(rank.pid, signal.SIGKILL)
    signal_rank(rank, signal.SIGKILL)


def signal_rank(rank: Stoppable, number: signal.Signals) -> None:
    """Send a signal to a rank, and to its group if it is a program. The rank must not have been reaped."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if rank.is_program and number is not signal.SIGKILL:
            os.killpg(rank.pid, number)
        else:
            signal.pidfd_send_signal(rank.pidfd, number)
