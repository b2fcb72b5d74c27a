"""What a process inherits from the one that starts it, besides environment and signals: read in the kernel, taken over by ranks.

A rank is to find the limits, the niceness and the processors that a program finds which the notebook starts at that moment, also when the rank
has stood by since before.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator

import msgspec

EXPENDABLE = 500  # added to a rank's oom_score_adj: when memory is short the system ends ranks, and spares notebook and agent
_LIMITS = {name: getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")}
_AT_START = ("RLIMIT_STACK",)  # limits that a process looks at when it starts


class Inherited(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a process has from the one that started it, besides environment, folder and umask."""

    limits: dict[str, tuple[int, int]]  # RLIMIT_NOFILE: soft, hard; -1 for none
    cpus: tuple[int, ...]
    nice: int
    policy: int  # of scheduling
    oom_score_adj: int
    user: tuple[int, ...]  # real, effective and saved user and group, then other groups


def read() -> Inherited:
    """Return what a process would inherit that this thread starts now."""
    return Inherited(
        limits={name: resource.getrlimit(number) for name, number in _LIMITS.items()},
        cpus=tuple(sorted(os.sched_getaffinity(0))),
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        policy=os.sched_getscheduler(0),
        oom_score_adj=_oom_score_adj(),
        user=(*os.getresuid(), *os.getresgid(), *sorted(os.getgroups())),
    )


def why_not(mine: Inherited | None, wanted: Inherited | None) -> str:
    """Return why a process that started with one cannot take over the other, in a few words; empty when it can."""
    if mine is None or wanted is None or mine == wanted:
        return ""
    if mine.user != wanted.user:
        return "the user changed"
    if mine.cpus != wanted.cpus:  # libraries have counted them
        return "the processors that it may use changed"
    if mine.policy != wanted.policy or wanted.nice < mine.nice:
        return "its scheduling changed"
    for name, (soft, hard) in wanted.limits.items():
        had = mine.limits.get(name)
        if had is not None and ((had != (soft, hard) and name in _AT_START) or _is_above(hard, had[1])):
            return f"{name} changed"
    return ""


def take(wanted: Inherited | None) -> None:
    """Take over what can be changed in a process that has started: limits, niceness, and how soon the system ends it for want of memory."""
    if wanted is None:
        return
    for name, limits in wanted.limits.items():
        if name in _LIMITS and resource.getrlimit(_LIMITS[name]) != tuple(limits):
            with contextlib.suppress(ValueError, OSError):  # above the hard limit of this machine, or of this process
                resource.setrlimit(_LIMITS[name], limits)
    if os.getpriority(os.PRIO_PROCESS, 0) != wanted.nice:
        for thread in _threads():
            with contextlib.suppress(OSError):  # it may not be nicer than it has become, or the thread has ended
                os.setpriority(os.PRIO_PROCESS, thread, wanted.nice)
    be_expendable(wanted.oom_score_adj)


def raise_descriptor_limit() -> None:
    """Let this process open as many files as it may be allowed to. What it starts gets the limits of its launch."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # the system allows no process so many
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def be_expendable(oom_score_adj: int | None = None) -> None:
    """Have the system rather end this process than the notebook, which has this value or the one that this process has inherited."""
    of_notebook = _oom_score_adj() if oom_score_adj is None else oom_score_adj
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:  # a hardened /proc
        file.write(str(min(1000, of_notebook + EXPENDABLE)))


def _oom_score_adj() -> int:
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", encoding="ascii") as file:
        return int(file.read())
    return 0


def _is_above(limit: int, other: int) -> bool:
    return other != resource.RLIM_INFINITY and (limit == resource.RLIM_INFINITY or limit > other)


def _threads() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc/self/task"))
