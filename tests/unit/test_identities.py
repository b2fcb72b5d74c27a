"""Which process is which."""

from __future__ import annotations

import os

import msgspec
import psutil
import pytest
from histories import identity

from ice_notebook.host import identities
from ice_notebook.host.identities import identity_of, is_alive, is_of_this_machine, own_identity

NO_SUCH_PROCESS = 1 << 29  # above every system's largest process number


def test_a_process_is_known_by_its_number_and_start():
    mine = own_identity()
    assert mine == identity_of(os.getpid())
    assert is_alive(mine) is True
    assert is_alive(msgspec.structs.replace(mine, started=mine.started - 1)) is False  # another process had the number then


def test_a_process_that_is_not_there_is_not_alive():
    assert identity_of(NO_SUCH_PROCESS) is None
    assert is_alive(msgspec.structs.replace(own_identity(), pid=NO_SUCH_PROCESS)) is False


def test_a_zombie_is_gone():
    if (pid := os.fork()) == 0:
        os._exit(0)
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert identity_of(pid) is None
    finally:
        os.waitpid(pid, 0)


def test_the_start_is_counted_from_the_systems_own(monkeypatch):
    ticks = os.sysconf("SC_CLK_TCK")
    assert own_identity().started / ticks == pytest.approx(psutil.Process().create_time() - psutil.boot_time(), abs=1.0)


def test_of_what_cannot_be_seen_nothing_is_said():
    assert is_alive(msgspec.structs.replace(own_identity(), namespace="of a container")) is None
    assert is_alive(identity(1)) is None


def test_a_machine_that_was_started_anew_knows_its_own(monkeypatch):
    mine = own_identity()
    monkeypatch.setattr(identities, "_here", lambda: ("a later boot", mine.namespace, "box/1"))
    assert is_alive(msgspec.structs.replace(mine, host="box/1")) is False
    assert is_alive(msgspec.structs.replace(mine, host="another/1")) is None
    assert is_of_this_machine(msgspec.structs.replace(mine, host="box/1"))
    monkeypatch.setattr(identities, "_here", lambda: ("a later boot", mine.namespace, "box/"))
    assert is_alive(msgspec.structs.replace(mine, host="box/")) is None  # containers of one image may all be called so
