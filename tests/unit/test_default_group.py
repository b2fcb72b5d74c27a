"""When a rank may leave the default group: two ranks as threads over a store in memory, with the group itself played."""

from __future__ import annotations

import threading

import pytest

torch = pytest.importorskip("torch")

from ice_notebook.rank import process_group  # noqa: E402

HANG_S = 60


@pytest.fixture
def destroyed(monkeypatch):
    """Two ranks' worth of torch: groups that exist at once, and the count of those that were destroyed."""
    store, destroyed = torch.distributed.HashStore(), []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(process_group, "_original_init", lambda *_, **__: None)
    monkeypatch.setattr(torch.distributed, "TCPStore", lambda *_, **__: store)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: destroyed.append(threading.current_thread().name))
    return destroyed


def test_a_rank_does_not_leave_before_the_last_has_joined(destroyed, monkeypatch):
    first, second = process_group.ProcessGroup(), process_group.ProcessGroup()
    first.init("gloo")
    leaving = threading.Thread(target=first.destroy, name="first")
    leaving.start()
    leaving.join(0.2)
    assert leaving.is_alive(), "the other rank may still be connecting to it"
    assert destroyed == []
    monkeypatch.setenv("RANK", "1")
    second.init("gloo")
    leaving.join(HANG_S)
    assert destroyed == ["first"]
    second.destroy()
    assert len(destroyed) == 2


def test_a_rank_that_waits_for_one_that_never_comes_leaves_all_the_same(destroyed, monkeypatch):
    monkeypatch.setattr(process_group, "_JOIN_WAIT", process_group._JOIN_WAIT / 1000)
    group = process_group.ProcessGroup()
    group.init("gloo")
    group.destroy()
    assert len(destroyed) == 1
