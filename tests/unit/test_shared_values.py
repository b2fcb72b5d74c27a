"""The folder of a run's values on shared memory."""

from __future__ import annotations

import os
import stat

import pytest

from ice_notebook.values import shared_values
from ice_notebook.values.shared_values import SharedValues


@pytest.fixture(autouse=True)
def shared_memory(tmp_path, monkeypatch):
    """Shared memory of this test's own."""
    path = tmp_path / "shm"
    path.mkdir()
    monkeypatch.setattr(shared_values, "SHARED_MEMORY", path)
    return path


def test_a_folder_is_for_its_user_alone_and_is_gone_with_its_owner(shared_memory):
    values = SharedValues.make("1")
    assert (values.path.parent, stat.S_IMODE(values.path.stat().st_mode)) == (shared_memory, 0o700)
    shared_values.remove_abandoned()
    assert values.path.exists()
    assert SharedValues.make("1") is None  # not one that somebody else has made
    assert list(shared_memory.iterdir()) == [values.path]
    values.discard()
    values.discard()
    assert list(shared_memory.iterdir()) == []


def test_a_forgotten_folder_is_removed(shared_memory):
    values = SharedValues.make("1")
    del values
    assert list(shared_memory.iterdir()) == []


def test_a_forked_child_neither_removes_it_nor_keeps_it_from_being_removed(shared_memory):
    values = SharedValues.make("1")
    (waits, goes_on), (up, is_up) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        values.discard()
        os.close(goes_on)
        os.write(is_up, b"!")
        os.read(waits, 1)
        os._exit(0)
    os.close(waits)
    os.read(up, 1)
    assert values.path.exists()
    values._finalizer.detach()[2][1].release()  # as the death of its owner does
    shared_values.remove_abandoned()
    assert list(shared_memory.iterdir()) == []
    for descriptor in (goes_on, up, is_up):
        os.close(descriptor)
    os.waitpid(pid, 0)


def test_without_shared_memory_there_is_none(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_values, "SHARED_MEMORY", tmp_path / "none")
    assert SharedValues.make("1") is None
    shared_values.remove_abandoned()
