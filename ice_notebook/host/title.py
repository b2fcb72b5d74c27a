"""How a process of ours reads in lists of processes: the command line that `ps`, `pgrep -f`, `top` and `nvidia-smi` show, and `sys.orig_argv`.

The system reads a command line from the memory of the process, where it was put when the process was started: ours say there how to begin. A
process may write something else to that place, and, on Linux, name another end of it (PR_SET_MM_MAP). Doing the latter, it names the end of its
heap as well, which no other thread may move meanwhile; where one might, the words are written as one, as setproctitle(3) of BSD does.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Sequence

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
# What `struct prctl_mm_map` holds, with the places in /proc/PID/stat of what is only handed on, counted as in proc(5).
_PLACES = {
    "start_code": 26,
    "end_code": 27,
    "start_data": 45,
    "end_data": 46,
    "start_brk": 47,
    "brk": 0,
    "start_stack": 28,
    "arg_start": 48,
    "arg_end": 49,
    "env_start": 50,
    "env_end": 51,
    "auxv": 0,
}
_NO_FILE = 0xFFFFFFFF
_MARK = b"\x01"  # not a null byte at the very end: the system then shows one text, up to its first one

_libc = ctypes.CDLL(None)
_libc.sbrk.restype = ctypes.c_void_p


class _Map(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_uint64) for name in _PLACES), ("auxv_size", ctypes.c_uint32), ("exe_fd", ctypes.c_uint32)]


def command_of(*words: str) -> list[str]:
    """Return a command line of ours, as a person would write it."""
    return [sys.executable, "-m", "ice_notebook", *words]


def show(words: Sequence[str], *, may_change: bool = False) -> None:
    """Have this process shown as a command line, and as that in `sys.orig_argv`. One that may change later keeps the room for it."""
    sys.orig_argv[:] = words
    try:
        places = _read_places()
    except (OSError, ValueError, IndexError):  # a hardened /proc: it is shown as it was started
        return
    start = places["arg_start"]
    room = places["env_start"] - start  # the command line was up to there, whatever end of it has been named since
    shown = places["arg_end"] - start
    if not 2 < shown <= room:
        return
    text = b"\0".join(os.fsencode(word) for word in words) + b"\0"
    is_alone = _no_other_thread_runs()
    if is_alone and not may_change and len(text) <= room:
        ctypes.memmove(start, text.ljust(room, b"\0"), room)
        _name_end({**places, "arg_end": start + len(text)})
        return
    if is_alone and shown < room:
        _name_end({**places, "arg_end": start + room})
        shown = _read_places()["arg_end"] - start
    ctypes.memmove(start, _as_one(text, shown, room), room)


def _as_one(text: bytes, shown: int, room: int) -> bytes:
    """Return what has the words shown as one text, in so much memory, of which the system takes so much for the command line."""
    joined = text[:-1].replace(b"\0", b" ")[: shown - 2]
    if len(joined) < shown - 1:
        return (joined.ljust(shown - 1, b"\0") + _MARK).ljust(room, b"\0")
    return (joined + b" ").ljust(room, b"\0")


def _read_places() -> dict[str, int]:
    with open("/proc/self/stat", "rb") as stat:
        fields = stat.read().rpartition(b")")[2].split()  # from the third on: the second is a name with anything in it
    return {name: int(fields[place - 3]) if place else 0 for name, place in _PLACES.items()}


def _no_other_thread_runs() -> bool:
    """Return whether no thread can move the end of the heap now: there are only Python's, which wait for this one's lock, or in the system."""
    return len(os.listdir("/proc/self/task")) == threading.active_count()


def _name_end(places: dict[str, int]) -> None:
    """Tell the system where the command line ends. Where that is not allowed, null bytes follow it, which most do not show."""
    made = _Map(**{**places, "brk": _libc.sbrk(0), "auxv_size": 0, "exe_fd": _NO_FILE})
    _libc.prctl(_PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(made), ctypes.c_size_t(ctypes.sizeof(made)), 0)
