from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from histories import History, plan

from ice_notebook import processes, store
from ice_notebook import protocol as p
from ice_notebook.errors import LaunchError
from ice_notebook.store import RunFolder


@pytest.fixture(autouse=True)
def shared_memory(tmp_path, monkeypatch):
    """Shared memory of this test's own."""
    path = tmp_path / "shm"
    path.mkdir()
    monkeypatch.setattr(store, "SHARED_MEMORY", path)
    return path


@pytest.fixture(autouse=True)
def swept(monkeypatch):
    """The markers that were swept, by nobody: there are no processes here."""
    markers = []
    monkeypatch.setattr(processes, "sweep", lambda *given, **_: markers.extend(given) or 3)
    return markers


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def make(run_id: str, *events, **settled) -> RunFolder:
    """Make the folder of a run that somebody launched, with its journal."""
    folder = RunFolder.create(run_id)
    dead = {"kernel_pid": 1 << 29, "kernel_started": 1.0}  # no process has such a number
    folder.write_plan(plan(run_id=run_id, folder=str(folder.path), marker=f"marker of {run_id}", **{**dead, **settled}))
    with folder.open_journal() as journal:
        for event in events:
            journal.append(event)
    return folder


def runs_in(cache: Path) -> list[str]:
    return sorted(path.name for path in (cache / "ice_notebook").iterdir())


# ---- the folder --------------------------------------------------------------------------------------------------------------------------


def test_ids_differ_and_sort_by_time():
    first, second = store.new_run_id(), store.new_run_id()
    assert first != second
    assert first[:8] <= second[:8]
    assert first.isascii()
    assert "/" not in first


def test_a_run_folder_is_for_its_user_alone(cache):
    folder = RunFolder.create("1")
    folder.make_rank_dir(0, 3)
    assert folder.path == cache / "ice_notebook" / "1"
    assert [mode(path) for path in (folder.path, folder.path.parent, folder.rank_dir(0, 3))] == [0o700] * 3


def test_a_folder_below_log_dir_is_linked_from_the_cache(cache, tmp_path):
    folder = RunFolder.create("1", log_dir=str(tmp_path / "my" / "logs"), rdzv_id="job_a")
    assert folder.path == tmp_path / "my" / "logs" / "job_a_1"
    assert (cache / "ice_notebook" / "1").resolve() == folder.path
    assert mode(folder.path) == 0o700
    folder.discard()
    assert runs_in(cache) == []
    assert (tmp_path / "my" / "logs").exists()
    assert not folder.path.exists()


def test_a_home_sign_in_log_dir_is_the_users_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.create("1", log_dir="~/logs").path == tmp_path / "logs" / "none_1"


@pytest.mark.parametrize("in_the_way", ["ice_notebook", "ice_notebook/1"])
def test_a_file_in_the_way_is_told(cache, in_the_way):
    path = cache / in_the_way
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    with pytest.raises(LaunchError, match=r"The run folder '.*/1' cannot be made: .*\. Free space there, or set XDG_CACHE_HOME\."):
        RunFolder.create("1")
    store.clean_up()  # and nothing else breaks by it


def test_the_plan_is_kept_without_the_ranks_environment():
    folder = RunFolder.create("1")
    written = plan(environment={"PASSWORD": "xyzzy"})
    folder.write_plan(written)
    assert folder.read_plan() == p.replace(written, environment={})
    assert b"xyzzy" not in folder.plan_file.read_bytes()


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    store.write_atomically(path, b"old")

    def fail(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        store.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [left.name for left in tmp_path.iterdir() if left.is_file()] == ["plan.json"]


# ---- the journal -------------------------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read():
    history = History().begin().returns(0).end()
    assert make("1", *history.events).read_events() == history.events


def test_a_journal_that_was_not_begun_has_no_events():
    assert RunFolder.create("1").read_events() == []


def test_a_torn_last_line_is_not_read_and_cut_by_the_next_writer():
    history = History().begin().returns(0)
    folder = make("1", *history.events)
    with folder.journal_file.open("ab") as journal:
        journal.write(p.encode(history.events[-1])[:-5])
    assert folder.read_events() == history.events
    with folder.open_journal() as journal:
        journal.append(history.events[0])
    assert folder.read_events() == [*history.events, history.events[0]]


def test_a_journal_of_one_torn_line_is_empty():
    folder = make("1")
    folder.journal_file.write_bytes(b'{"event":"run_be')
    assert folder.read_events() == []
    with folder.open_journal():
        pass
    assert folder.journal_file.read_bytes() == b""


# ---- what earlier kernels left -----------------------------------------------------------------------------------------------------------


def ended(n: int) -> RunFolder:
    return make(f"{n:03}", *History().begin().end().events)


def test_only_the_newest_runs_are_kept(cache):
    for n in range(23):
        ended(n)
    store.clean_up()
    assert runs_in(cache) == [f"{n:03}" for n in range(3, 23)]


def test_a_run_that_somebody_looks_at_is_kept(cache):
    folders = [ended(n) for n in range(4)]
    lock = folders[1].lock()
    another = folders[1].lock()  # several may look
    store.clean_up(keep=1)
    assert runs_in(cache) == ["001", "003"]
    lock.close()
    another.close()
    store.clean_up(keep=1)
    assert runs_in(cache) == ["003"]


def test_a_folder_that_the_user_named_loses_its_link_only(cache, tmp_path):
    folder = RunFolder.create("000", log_dir=str(tmp_path / "logs"))
    folder.write_plan(plan())
    ended(1)
    store.clean_up(keep=1)
    assert runs_in(cache) == ["001"]
    assert folder.read_plan()


def test_a_folder_that_cannot_be_written_has_no_lock(monkeypatch):
    folder = ended(1)

    def refuse(self, *_, **__):
        raise PermissionError

    monkeypatch.setattr(Path, "open", refuse)
    assert folder.lock() is None


def test_a_run_whose_kernel_and_agent_are_gone_is_swept_and_closed(swept, shared_memory):
    history = History().begin()
    folder = make("1", *history.events)
    values = store.make_shared_dir("1")
    store.clean_up()
    store.clean_up()
    assert swept == ["marker of 1"]  # once
    end = folder.read_events()[-1]
    assert (type(end), end.outcome, end.reason, end.swept) == (
        p.RunEnded,
        p.Outcome.STOPPED,
        "the kernel and the agent were killed",
        3,
    )
    assert values is not None
    assert list(shared_memory.iterdir()) == []


def test_a_run_that_did_not_even_begin_is_swept_and_closed(swept):
    folder = make("1")
    store.clean_up()
    assert swept == ["marker of 1"]
    assert isinstance(folder.read_events()[-1], p.RunEnded)


@pytest.mark.parametrize("who", ["kernel", "agent"])
def test_a_run_of_a_living_kernel_or_agent_is_left_alone(swept, shared_memory, who):
    pid, started = os.getpid(), processes.start_time(os.getpid())
    settled = {"kernel_pid": pid, "kernel_started": started} if who == "kernel" else {}
    begun = p.RunBegun(at=1.0, agent_pid=pid if who == "agent" else 1 << 29, agent_started=started)
    folder = make("1", begun, **settled)
    store.clean_up()
    assert swept == []
    assert folder.read_events() == [begun]


def test_another_process_with_a_dead_kernels_number_is_not_taken_for_it(swept):
    make("1", kernel_pid=os.getpid(), kernel_started=1.0)
    store.clean_up()
    assert swept == ["marker of 1"]


def test_two_launches_may_clean_up_at_the_same_time(cache, tmp_path, shared_memory, monkeypatch):
    """Whatever the other one has removed between two steps of ours is gone, and nothing is wrong with that."""
    linked = RunFolder.create("000", log_dir=str(tmp_path / "logs"))
    linked.write_plan(plan())
    ended(1)
    values = store.make_shared_dir("of a run whose folder is gone")
    monkeypatch.setattr(store, "UNPLANNED_S", 0)
    read_plan, is_locked = RunFolder.read_plan, RunFolder.is_locked

    def read_when_the_values_are_gone(self):
        values.rmdir() if self.path.name.startswith("of a run") else None
        return read_plan(self)

    def look_when_the_link_is_gone(self):
        (cache / "ice_notebook" / "000").unlink()
        return is_locked(self)

    monkeypatch.setattr(RunFolder, "read_plan", read_when_the_values_are_gone)
    monkeypatch.setattr(RunFolder, "is_locked", look_when_the_link_is_gone)
    store.clean_up(keep=1)
    assert (runs_in(cache), list(shared_memory.iterdir())) == (["001"], [])


def test_folders_that_cannot_be_read_do_not_get_in_the_way(cache, swept):
    (cache / "ice_notebook" / "000").mkdir(parents=True)  # a launch that is just being made
    strange = RunFolder.create("001")
    strange.plan_file.write_text("{}")
    strange.journal_file.write_text('{"event": "of another version"}\n')
    make("002")
    store.clean_up()
    assert swept == ["marker of 002"]
    assert runs_in(cache) == ["000", "001", "002"]


# ---- values on shared memory -------------------------------------------------------------------------------------------------------------


def test_values_live_in_a_folder_of_the_run_that_is_for_its_user_alone(shared_memory):
    path = store.make_shared_dir("1")
    assert path is not None
    assert path.parent == shared_memory
    assert mode(path) == 0o700
    assert store.make_shared_dir("1") is None  # not one that somebody else has made
    store.remove_shared_dir("1")
    store.remove_shared_dir("1")
    assert not path.exists()


def test_without_shared_memory_there_is_no_such_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(store, "SHARED_MEMORY", tmp_path / "none")
    assert store.make_shared_dir("1") is None
    store.clean_up()


def test_values_of_dead_kernels_are_removed_and_those_of_living_ones_kept(shared_memory):
    make("dead", *History().begin().end().events)
    make("living", kernel_pid=os.getpid(), kernel_started=processes.start_time(os.getpid()))
    made = [store.make_shared_dir(run_id) for run_id in ("dead", "living", "just being made", "forgotten")]
    (shared_memory / "of another program").mkdir()
    os.utime(made[3], (0, 0))
    store.clean_up()
    assert sorted(path.name.rpartition("-")[2] for path in shared_memory.iterdir()) == [
        "just being made",
        "living",
        "of another program",
    ]
