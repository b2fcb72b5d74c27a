"""What ties a rank to its agent and keeps its output prompt. Runs in a rank, first of all, before torch is imported."""

from __future__ import annotations

import ctypes
import fcntl
import io
import os
import signal
import sys
import termios
import threading
from typing import Any, TextIO

_PR_SET_PDEATHSIG = 1
_IOLBF = 1  # glibc's line buffering

libc = ctypes.CDLL(None, use_errno=True)


def die_with_agent(agent_pid: int) -> None:
    """Have the system kill this process when the agent's io thread, which started it, ends."""
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != agent_pid:  # it died before the line above
        os._exit(1)


def take_terminal(fd: int) -> None:
    """Make a pseudo-terminal the controlling one of this session: when the agent's end closes, the session is hung up.

    It stays open, whatever standard streams are redirected to, and in a program that takes this process's place by exec: to the agent a terminal
    that nobody has open reads as hung up itself.
    """
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)
    os.set_inheritable(fd, True)
    # What a rank starts in a process group of its own would be stopped for good when it reads from the terminal or changes it, and nobody
    # could bring it to the foreground. Children inherit "ignore", and get an error instead.
    for number in (signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)


def leave_terminal(fd: int) -> None:
    """Have no controlling terminal any more: a program may be a shell, with whose end the system would hang up on all that it has started.

    What it prints still goes there.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the system says so by a hang-up, to this process too
    try:
        fcntl.ioctl(fd, termios.TIOCNOTTY)
    finally:
        signal.signal(signal.SIGHUP, before)


def buffer_by_line() -> None:
    """Have Python and C write whole lines at once, on terminals and files alike: a killed rank loses at most an unfinished line."""
    libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, _IOLBF, 0)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, io.TextIOWrapper)
        stream.reconfigure(line_buffering=True, errors="backslashreplace")


def write_to(out: int, err: int) -> None:
    """Make descriptors the standard output and error of this process, with new Python streams: the old ones know another kind of file."""
    for fd, number, name in ((out, 1, "stdout"), (err, 2, "stderr")):
        os.dup2(fd, number)
        stream = open(number, "w", encoding=sys.stdout.encoding, closefd=False)  # noqa: SIM115 - as long as the process lives
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def redirect(stream: TextIO, path: str) -> None:
    """Send a standard stream, C's writes included, to a file or terminal."""
    stream.flush()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOCTTY | os.O_CLOEXEC, 0o600)
    os.dup2(fd, stream.fileno())
    os.close(fd)


def spare_resource_trackers() -> None:
    """Let a resource tracker that the user's code starts ignore the hang-up that follows when this rank is killed.

    The tracker unlinks the named semaphores of its dead owner; killed with it, it leaves them in /dev/shm for good.
    """
    from multiprocessing import resource_tracker  # noqa: PLC0415 - imported by torch anyway, after this

    tracker: Any = resource_tracker._resource_tracker
    ensure_running = tracker.ensure_running

    def ensure_running_without_hang_up() -> None:
        if tracker._pid is not None or threading.current_thread() is not threading.main_thread():
            ensure_running()
            return
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a child inherits "ignore"
        try:
            ensure_running()
        finally:
            signal.signal(signal.SIGHUP, before)

    tracker.ensure_running = ensure_running_without_hang_up
    resource_tracker.ensure_running = ensure_running_without_hang_up
