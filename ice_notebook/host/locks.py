"""Files that are held locked for as long as a process, or an object of it, lives: what others can trust when they see neither.

A lock (flock) belongs to an opening of a file and is shared with forked children, which must not keep it alive beyond their parent: they
close it. No clock, process number or age has a say in it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import weakref
from pathlib import Path

from ice_notebook.host.private_files import open_private


class Lock:
    """A file that is held. Forgotten, it is released when the object is collected."""

    def __init__(self, descriptor: int) -> None:
        self._finalizer = weakref.finalize(self, _close, descriptor, os.getpid())
        _held().add(descriptor)

    @classmethod
    def take(cls, path: Path, *, is_shared: bool = False) -> Lock | None:
        """Return a lock on a file, which is made if need be; None where somebody else has it, or none can be had."""
        try:
            descriptor = open_private(path, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:  # somebody else's folder, or a copy on a disc
            return None
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError:  # held, or a file system without locks
            os.close(descriptor)
            return None
        return cls(descriptor)

    def release(self) -> None:
        """Let it go."""
        self._finalizer()

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_held(path: Path) -> bool | None:
    """Return whether a living process holds a file; None where the file is not there, or its file system does not say."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    else:
        return False
    finally:
        os.close(descriptor)


def _close(descriptor: int, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has closed its own copy, and may have given the number to another file
        _held().discard(descriptor)  # before: a child that is forked from now on may find another file there
        os.close(descriptor)


def _held() -> set[int]:
    return _held_by(os.getpid())


@functools.cache
def _held_by(_pid: int) -> set[int]:
    held: set[int] = set()
    os.register_at_fork(after_in_child=functools.partial(_leave_to_parent, held))
    return held


def _leave_to_parent(held: set[int]) -> None:
    for descriptor in held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    held.clear()
