"""The processes that a benchmark's kernel and its launches have started: found by a variable in their environment, ended by pid."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator

MARKER = "BENCHMARK_MARKER"
_POLL_S = 0.005
_END_WAIT_S = 10.0
_TRACKER_WAIT_S = 2.0
_TRACKER = "resource tracker"


def members(marker: str) -> list[int]:
    """Return the living processes that were started, at whatever remove, with this marker."""
    return [pid for pid in _pids() if _carries(pid, marker) and is_alive(pid)]


def is_alive(pid: int) -> bool:
    """Return whether there is such a process, and it is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            return stat.read().rpartition(b")")[2].split()[0] != b"Z"
    except (OSError, IndexError):
        return False


def kind(pid: int) -> str:
    """Return in a word or two what a process is."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as command:
            text = command.read().decode(errors="replace").replace("\0", " ")
    except OSError:
        return "gone"
    kinds = {
        "resource_tracker": _TRACKER,
        "ice_notebook.agent.server": "server",
        "ice_notebook.agent": "agent",
        "ice_notebook.rank": "rank",
        "-m ice_notebook server": "server",
        "-m ice_notebook agent": "agent",
        "-m ice_notebook rank": "rank",
        "multiprocessing.spawn": "rank",
        "ipyparallel.engine": "engine",
        "ipyparallel.controller": "controller",
        "ipykernel": "forked kernel",
    }
    return next((word for part, word in kinds.items() if part in text), os.path.basename(text.split(" ", 1)[0]) or "process")


def end(marker: str) -> None:
    """Kill whatever carries the marker, and wait until it is gone.

    Resource trackers leave by themselves once their owners are gone, and unlink the semaphores of the dead before; they get time for that.
    """
    began = time.monotonic()
    while (left := members(marker)) and time.monotonic() < began + _END_WAIT_S:
        is_patient = time.monotonic() < began + _TRACKER_WAIT_S
        for pid in left:
            if not (is_patient and kind(pid) == _TRACKER):
                _kill(pid, marker)
        time.sleep(_POLL_S)


class Watch(threading.Thread):
    """Notes when the last of some processes is gone: `gone_at`, None while one is there."""

    def __init__(self, pids: Collection[int]) -> None:
        super().__init__(daemon=True)
        self.gone_at: float | None = None
        self._pids = list(pids)
        self._is_over = threading.Event()
        self.start()

    def run(self) -> None:
        while not self._is_over.wait(_POLL_S):
            if not any(is_alive(pid) for pid in self._pids):
                self.gone_at = time.time()
                return

    def wait(self, timeout_s: float) -> float | None:
        """Return when they were gone, None if they are not in time."""
        self.join(timeout_s)
        self._is_over.set()
        self.join()
        return self.gone_at


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())


def _carries(pid: int, marker: str) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return f"{MARKER}={marker}".encode() in environ.read().split(b"\0")
    except OSError:
        return False


def _kill(pid: int, marker: str) -> None:
    with contextlib.suppress(OSError):  # it is gone
        pidfd = os.pidfd_open(pid)
        try:
            if _carries(pid, marker):  # asked again with the pidfd open: the number may have got another owner
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
