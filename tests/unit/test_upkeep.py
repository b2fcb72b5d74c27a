"""What is done about the runs of a cache: only what certainly is nobody's any more is ended, closed or removed."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from histories import History, identity, plan

from ice_notebook.host import processes
from ice_notebook.host.identities import Identity, own_identity
from ice_notebook.host.locks import Lock
from ice_notebook.runs import upkeep
from ice_notebook.runs.store import RunFolder
from ice_notebook.values import shared_values
from ice_notebook.values.shared_values import SharedValues
from ice_notebook.wire import protocol as p

REASON = "the kernel and the agent were killed"


@pytest.fixture(autouse=True)
def shared_memory(tmp_path, monkeypatch):
    """Shared memory of this test's own."""
    path = tmp_path / "shm"
    path.mkdir()
    monkeypatch.setattr(shared_values, "SHARED_MEMORY", path)
    return path


@pytest.fixture(autouse=True)
def swept(monkeypatch):
    """The markers that were swept, by nobody: there are no processes here."""
    markers = []
    monkeypatch.setattr(processes, "sweep", lambda *given, **_: markers.extend(given) or 3)
    return markers


def dead(**changes) -> Identity:
    return msgspec.structs.replace(own_identity(), **{"pid": 1 << 29, **changes})  # no process has such a number


def run_id(n: int) -> str:
    return f"20260101-000000-{n:08x}"


def make(n: int, *events, owner: Identity | None = None, **created) -> RunFolder:
    """Make the folder of a run that somebody launched, with its journal."""
    folder = RunFolder.create(run_id(n), **created)
    folder.write_plan(plan(run_id=run_id(n), folder=str(folder.path), marker=f"marker of {n}"))
    folder.owner_file.write_bytes(p.encode(p.Owner(process=owner or dead(), is_locked=True)))
    with folder.open_journal() as journal:
        for event in events:
            journal.append(event)
    return folder


def ended(n: int, **created) -> RunFolder:
    return make(n, *History().begin().end().events, **created)


def runs_in(cache: Path) -> list[int]:
    return sorted(int(path.name[-8:], 16) for path in (cache / "ice_notebook").iterdir())


# ---- what somebody left behind -----------------------------------------------------------------------------------------------------------


def test_a_run_whose_kernel_and_agent_are_gone_is_swept_and_closed_once(swept):
    folder = make(1, *History().begin().events)
    upkeep.clean_up()
    upkeep.clean_up()
    assert swept == ["marker of 1"]
    end = folder.read_events()[-1]
    assert (type(end), end.outcome, end.reason, end.swept) == (p.RunEnded, p.Outcome.STOPPED, REASON, 3)


def test_a_run_that_did_not_even_begin_is_swept_and_closed(swept):
    folder = make(1)
    upkeep.clean_up()
    assert swept == ["marker of 1"]
    assert isinstance(folder.read_events()[-1], p.RunEnded)


@pytest.mark.parametrize("who", ["kernel", "agent"])
def test_a_run_of_a_living_kernel_or_agent_is_left_alone(swept, who):
    begun = p.RunBegun(at=1.0, agent=own_identity() if who == "agent" else dead())
    folder = make(1, begun, owner=own_identity() if who == "kernel" else None)
    upkeep.clean_up()
    assert swept == []
    assert folder.read_events() == [begun]


def test_a_run_is_not_taken_for_dead_because_a_clock_was_set(swept, monkeypatch):
    """A laptop that wakes up, a virtual machine that is moved, a server of times: the system's idea of when it started moves with them."""
    import psutil

    folder = make(1, *History().begin().events, owner=own_identity())
    monkeypatch.setattr(psutil.Process, "create_time", lambda self: 1.0)
    upkeep.clean_up()
    assert (swept, folder.has_ended()) == ([], False)


def test_another_process_with_a_dead_kernels_number_is_not_taken_for_it(swept):
    make(1, owner=dead(pid=os.getpid(), started=own_identity().started - 1))
    upkeep.clean_up()
    assert swept == ["marker of 1"]


@pytest.mark.parametrize("changes", [{"boot": "of a machine", "host": "box/1"}, {"namespace": "of a container"}])
def test_a_run_of_another_machine_or_container_is_left_alone(swept, cache, changes):
    owner = dead(**changes)
    folder = make(1, *History().begin().events, owner=owner)
    lock = Lock.take(folder.owner_file)  # as its kernel does, if this file system shows it
    upkeep.clean_up(keep=0)
    assert (swept, folder.has_ended(), runs_in(cache)) == ([], False, [1])
    lock.release()


def test_a_run_of_this_machine_before_it_was_started_anew_is_closed(swept, monkeypatch):
    from ice_notebook.host import identities

    mine = own_identity()
    monkeypatch.setattr(identities, "_here", lambda: (mine.boot, mine.namespace, "box/1"))
    make(1, owner=identity(os.getpid()))
    upkeep.clean_up()
    assert swept == ["marker of 1"]


def test_folders_that_cannot_be_read_do_not_get_in_the_way(cache, swept):
    (cache / "ice_notebook" / run_id(0)).mkdir(parents=True)  # a launch that is just being made
    strange = make(1)
    strange.plan_file.write_text("{}")
    strange.journal_file.write_text('{"event": "of another version"}\n')
    make(2)
    upkeep.clean_up()
    assert swept == ["marker of 2"]
    assert runs_in(cache) == [0, 1, 2]


# ---- old runs ----------------------------------------------------------------------------------------------------------------------------


def test_only_the_newest_runs_are_kept(cache):
    for n in range(23):
        ended(n)
    upkeep.prune()
    assert runs_in(cache) == list(range(3, 23))


def test_a_run_that_somebody_looks_at_is_kept(cache):
    folders = [ended(n) for n in range(4)]
    lock = folders[1].lock()
    upkeep.prune(keep=1)
    assert runs_in(cache) == [1, 3]
    lock.release()
    upkeep.prune(keep=1)
    assert runs_in(cache) == [3]


def test_a_run_that_goes_on_is_kept(cache):
    make(0, *History().begin().events, owner=own_identity())
    ended(1)
    ended(2)
    upkeep.prune(keep=1)
    assert runs_in(cache) == [0, 2]


def test_what_is_no_run_stays(cache):
    ended(1)
    precious = cache / "ice_notebook" / "00-kept" / "precious"
    precious.mkdir(parents=True)
    link = cache / "ice_notebook" / "00-link"
    link.symlink_to(precious)
    upkeep.prune(keep=0)
    assert sorted(path.name for path in (cache / "ice_notebook").iterdir()) == ["00-kept", "00-link"]
    assert list(precious.iterdir()) == []


def test_a_folder_that_the_user_named_loses_its_link_only(cache, tmp_path):
    folder = ended(0, log_dir=str(tmp_path / "logs"))
    ended(1)
    upkeep.prune(keep=1)
    assert runs_in(cache) == [1]
    assert folder.read_plan()


def test_a_link_to_a_folder_that_is_gone_goes_too(cache, tmp_path):
    ended(0, log_dir=str(tmp_path / "logs"))
    ended(1)
    (tmp_path / "logs").rename(tmp_path / "elsewhere")
    upkeep.prune(keep=1)
    assert runs_in(cache) == [1]


def test_two_launches_may_prune_at_the_same_time(cache, tmp_path, monkeypatch):
    """What the other one has removed between two steps of ours is gone, and nothing is wrong with that."""
    ended(0, log_dir=str(tmp_path / "logs"))
    ended(1)
    is_locked = RunFolder.is_locked

    def look_when_the_link_is_gone(self):
        (cache / "ice_notebook" / run_id(0)).unlink()
        return is_locked(self)

    monkeypatch.setattr(RunFolder, "is_locked", look_when_the_link_is_gone)
    upkeep.prune(keep=1)
    assert runs_in(cache) == [1]


# ---- values ------------------------------------------------------------------------------------------------------------------------------


def test_values_of_dead_owners_are_removed_whatever_became_of_their_run_folders(shared_memory):
    mine = SharedValues.make("mine")
    for name in ("left", "of a folder that was pruned"):
        left = SharedValues.make(name)
        (left.path / "0.0").write_bytes(b"a value")
        left._finalizer.detach()[2][1].release()  # as the death of its owner does
    (shared_memory / "of another program").mkdir()
    upkeep.clean_up()
    assert sorted(path.name for path in shared_memory.iterdir()) == sorted([mine.path.name, "of another program"])
    mine.discard()
