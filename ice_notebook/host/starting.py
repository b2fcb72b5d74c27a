"""Starting a process of ours, which outlives no owner, and what it must be told of this one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Mapping

from ice_notebook.host import lifelines, processes

SERVER_NAME = "fork server".ljust(32, "-")  # what is forked writes its own marker over it, which may be as long


def make_ends() -> tuple[socket.socket, socket.socket]:
    """Return the two ends of a socket, neither of which has the number of a standard stream that this process may have closed."""
    return tuple(_above_standard_streams(end) for end in socket.socketpair())  # type: ignore[return-value]  # two


def _above_standard_streams(end: socket.socket) -> socket.socket:
    if end.fileno() > 2:
        return end
    with end:
        return socket.socket(fileno=fcntl.fcntl(end.fileno(), fcntl.F_DUPFD_CLOEXEC, 3))


def start_process(
    command: list[str],
    sock: int,
    log: int,
    *,
    environment: Mapping[str, str],
    marker: str,
    owner: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process of ours by its command line, with an end of a socket and a file for what it says.

    `marker` is what the sweep finds it by, with its name. `owner` is the lifeline of the process that it belongs to, by default this one.
    """
    owner = lifelines.lifeline() if owner is None else owner
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[sock, owner],
        # A notebook's interrupt goes to the kernel's whole process group: it must not reach the agent.
        start_new_session=True,
        env={**environment, **lifelines.environment_of(owner), processes.MARKER: marker},
        cwd="/",
    )


def interpreter() -> str:
    """Return the interpreter that agent and ranks are started with: the kernel's own."""
    return sys.executable or ""


def current_umask() -> int:
    """Return the umask of this process. It can only be read by setting it."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
