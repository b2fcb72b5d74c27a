"""What a forked process must do to be one of its own: its marker, its random numbers, and whether a fork is safe at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import sys

from ice_notebook.host.processes import MARKER

_GPU_FILES = ("/dev/nvidia", "/dev/dri", "/dev/kfd")
_libc = ctypes.CDLL(None)
_libc.getenv.restype = ctypes.c_void_p


class Marker:
    """The marker of this process as others see it, in the memory where the system has put its first environment.

    A fork copies that memory: a forked process would be taken for its parent.
    """

    def __init__(self) -> None:
        # Found before anybody sets the variable, which gives it another place.
        self._address = _libc.getenv(MARKER.encode())
        self._room = len(os.environ.get(MARKER, "").encode())

    def change(self, marker: str) -> None:
        """Carry another marker, no longer than the first."""
        value = marker.encode()
        assert self._address is not None
        assert len(value) <= self._room
        ctypes.memmove(self._address, value.ljust(self._room, b"\0"), self._room)
        os.environ[MARKER] = marker  # for what this process starts


def refusal() -> str:
    """Return why a fork of this process would not be whole, empty when it would.

    A first fork has numerical libraries end their threads (OpenBLAS does so before each fork, and starts them anew when needed). What is left
    after it is somebody's who will miss it in the child.
    """
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    threads = [_name_of(task) for task in os.listdir("/proc/self/task") if int(task) != os.getpid()]
    if threads:
        return f"a thread runs in it ({threads[0]})"
    if has_gpu_open():
        return "it has a GPU open"
    return ""


def has_gpu_open() -> bool:
    """Return whether this process has a file of a GPU's driver open."""
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{fd}").startswith(_GPU_FILES):
                return True
    return False


def reseed() -> None:
    """Give this process random numbers of its own, of Python, numpy and torch: a fork copies the state of their generators."""
    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()


def _name_of(task: str) -> str:
    try:
        with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as name:
            return name.read().strip()
    except OSError:
        return task
