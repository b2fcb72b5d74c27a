"""Which process is which: what names one for good, and whether it still runs."""

from __future__ import annotations

import functools
import os
import socket

import msgspec


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What tells a process from every other one, wherever and whenever it is looked at.

    No clock has a say in it: the system counts a process's start from its own, which nobody can set (proc(5), field 22 of `stat`). A number
    means something within one boot and one namespace of numbers only.
    """

    pid: int
    started: int  # clock ticks from the system's start
    boot: str  # what the system calls its present start
    namespace: str  # of process numbers: a container has its own
    host: str  # the machine's name and what it calls itself for good, as far as it does


def identity_of(pid: int) -> Identity | None:
    """Return the identity of a process that this one can see; None when there is none."""
    fields = stat_of(pid)
    if fields is None or fields[0] in {b"Z", b"X"}:
        return None
    boot, namespace, host = _here()
    return Identity(pid=pid, started=int(fields[19]), boot=boot, namespace=namespace, host=host)


def own_identity() -> Identity:
    """Return the identity of this process."""
    return _own_identity(os.getpid())


@functools.cache
def _own_identity(pid: int) -> Identity:  # a forked child has another pid
    found = identity_of(pid)
    assert found is not None
    return found


def is_alive(process: Identity) -> bool | None:
    """Return whether a process still runs; None when that cannot be seen from here: it is another machine's, or another container's."""
    boot, namespace, host = _here()
    if process.boot != boot:
        # The same machine has been started anew since; another one goes on.
        return False if process.host == host and _names_machine(host) else None
    if process.namespace != namespace:
        return None
    return identity_of(process.pid) == process


def is_of_this_machine(process: Identity) -> bool:
    """Return whether a process is, or was, one of this machine, in whatever container."""
    boot, _, host = _here()
    return process.boot == boot or (process.host == host and _names_machine(host))


@functools.cache
def _here() -> tuple[str, str, str]:
    machine = _read("/etc/machine-id") or _read("/var/lib/dbus/machine-id")
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return _read("/proc/sys/kernel/random/boot_id"), namespace, f"{socket.gethostname()}/{machine}"


def _names_machine(host: str) -> bool:
    """Return whether a machine has a name for good: an image of a container often has none, and every machine that runs it the same."""
    return not host.endswith("/")


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def stat_of(pid: int) -> list[bytes] | None:
    """Return the fields of a process behind its name, as proc(5) counts them from the third: state, parent, group, …; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
