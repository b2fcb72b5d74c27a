"""Ports of this machine: whether one is free, and which process has it when it is not."""

from __future__ import annotations

import contextlib
import errno
import os
import socket

_LISTENING = "0A"  # the state in /proc/net/tcp


def is_free(address: str, port: int) -> bool:
    """Return whether a server may listen there. An address that is none of this machine's counts as free: who takes it will say so."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection of yesterday does not hold it
        try:
            probe.bind((address.strip("[]"), port))
            probe.listen(1)
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def describe_holder(port: int) -> str:
    """Return who listens at a port, as `python (pid 4711)`; empty when it cannot be seen from here, as with another user's process."""
    inodes = _listening_sockets(port)
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()) if inodes else ():
        with contextlib.suppress(OSError):  # gone meanwhile, or not ours to look at
            if any(_inode(f"/proc/{pid}/fd/{fd}") in inodes for fd in os.listdir(f"/proc/{pid}/fd")):
                return f"{_name_of(pid)} (pid {pid})"
    return ""


def _listening_sockets(port: int) -> set[str]:
    """Return the inodes of the sockets that listen at a port."""
    inodes = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/net/{table}", encoding="ascii") as lines:
            for line in lines:
                words = line.split()
                if len(words) > 9 and words[3] == _LISTENING and int(words[1].rpartition(":")[2], 16) == port:
                    inodes.add(words[9])
    return inodes


def _inode(link: str) -> str:
    try:
        return os.readlink(link).removeprefix("socket:[").rstrip("]")
    except OSError:  # closed meanwhile
        return ""


def _name_of(pid: int) -> str:
    import psutil  # noqa: PLC0415 - only a refusal needs it

    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "a process"
