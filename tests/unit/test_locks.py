"""Locks and the children of the process that holds them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from ice_notebook.host import locks
from ice_notebook.host.locks import Lock


def in_a_child(look) -> bool:
    """Return what a forked child finds."""
    if (pid := os.fork()) == 0:
        os._exit(not look())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_lock_ends_with_its_holder_whatever_the_holder_has_forked(tmp_path: Path):
    lock = Lock.take(tmp_path / "lock")
    assert lock is not None
    assert in_a_child(lambda: locks.is_held(tmp_path / "lock"))
    ours, its = socket.socketpair()
    if (pid := os.fork()) == 0:
        ours.close()
        its.send(b"forked")
        os._exit(bool(its.recv(1)))
    its.close()
    assert ours.recv(10) == b"forked"
    lock.release()
    assert locks.is_held(tmp_path / "lock") is False  # although the child lives
    ours.close()
    assert os.waitpid(pid, 0)[1] == 0


def test_what_gets_the_number_of_a_lock_that_was_released_is_open_in_children(tmp_path: Path):
    lock = Lock.take(tmp_path / "lock")
    assert lock is not None
    lock.release()
    reader, writer = os.pipe()  # the lowest numbers that are free
    assert in_a_child(lambda: os.write(writer, b"!") == 1 and os.read(reader, 1) == b"!")
    for descriptor in (reader, writer):
        os.close(descriptor)
