"""The folder of a run's values on shared memory: as long as its owner lives, it holds a file in it locked, and nobody else removes it.

Shared memory is this machine's alone, so that the lock says the truth also between containers, and whatever folder the run itself has.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import weakref
from pathlib import Path

from ice_notebook.host.locks import Lock
from ice_notebook.host.private_files import make_private_dir

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - folders in it are made fresh with mode 0700 under a random name
_OWNER = f"ice_notebook-{os.getuid() if hasattr(os, 'getuid') else 0}-"
_MAKING = f".{_OWNER}"  # the name before its owner holds it
_LOCK = ".owner"


class SharedValues:
    """A folder that this process owns. Forgotten, it is removed when the object is collected, or this process ends."""

    def __init__(self, path: Path, lock: Lock) -> None:
        self.path = path
        self._finalizer = weakref.finalize(self, _discard, path, lock, os.getpid())

    @classmethod
    def make(cls, run_id: str) -> SharedValues | None:
        """Make the folder of a run; None where there is none to be had."""
        making = SHARED_MEMORY / f"{_MAKING}{secrets.token_hex(8)}"
        path = SHARED_MEMORY / f"{_OWNER}{run_id}"
        try:
            make_private_dir(making)
        except OSError:
            return None
        lock = Lock.take(making / _LOCK)
        try:
            if lock is not None and not path.exists():  # else the rename would take an empty folder's place
                making.rename(path)
                return cls(path, lock)
        except OSError:
            pass  # somebody else has made one of that name: there is room in the run folder
        if lock is not None:
            lock.release()
        shutil.rmtree(making, ignore_errors=True)
        return None

    def discard(self) -> None:
        """Remove the folder. Values that are mapped stay readable until they are dropped."""
        self._finalizer()


def remove_abandoned() -> None:
    """Remove the folders of this user whose owners are gone."""
    try:
        found = [path for path in SHARED_MEMORY.iterdir() if path.name.startswith((_OWNER, _MAKING))]
    except OSError:
        return
    for path in found:
        if not (path / _LOCK).exists():  # in the middle of being made, or of being removed by another process
            continue
        lock = Lock.take(path / _LOCK)
        if lock is not None:
            with lock:
                shutil.rmtree(path, ignore_errors=True)


def _discard(path: Path, lock: Lock, pid: int) -> None:
    if os.getpid() == pid:  # a forked child that ends has nothing to drop
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):
            lock.release()
