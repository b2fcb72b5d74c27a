from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import msgspec
import pytest
from disks import FULL, Disk
from histories import History, plan

from ice_notebook.errors import LaunchError
from ice_notebook.host.identities import Identity, own_identity
from ice_notebook.host.locks import Lock, is_held
from ice_notebook.runs import store, upkeep
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire import protocol as p


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def make(run_id: str, *events) -> RunFolder:
    """Make the folder of a run with its journal."""
    folder = RunFolder.create(run_id)
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
    assert [mode(path) for path in (folder.path, folder.path.parent, folder.rank_dir(0, 3), folder.rank_dir(0, 3).parent)] == [
        0o700
    ] * 4


def test_a_folder_below_log_dir_is_linked_from_the_cache(cache, tmp_path):
    folder = RunFolder.create("1", log_dir=str(tmp_path / "my" / "logs"), rdzv_id="job_a")
    assert folder.path == tmp_path / "my" / "logs" / "job_a_1"
    assert (cache / "ice_notebook" / "1").resolve() == folder.path
    assert mode(folder.path) == 0o700
    folder.discard()
    assert runs_in(cache) == []
    assert (tmp_path / "my" / "logs").exists()
    assert not folder.path.exists()


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    """No folder of this user's own: his home cannot be written to. Returns where the system has its temporary files."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).startswith(str(tmp_path / "home")) and real(path, mode))
    return temporary


def test_without_a_home_that_can_be_written_to_runs_are_in_a_private_folder_of_the_systems_temporary_one(homeless, monkeypatch):
    cache = homeless / f"ice_notebook-{os.getuid()}"
    for _ in range(2):
        folder = RunFolder.create(store.new_run_id())
        assert folder.path.parent == cache
    assert mode(cache) == 0o700
    assert len(list(upkeep._folders())) == 2
    # No home is known, the home is no folder, and a variable that names one counts even if nobody may write there.
    monkeypatch.setattr(store.platformdirs, "user_cache_dir", lambda _: (_ for _ in ()).throw(RuntimeError("no home")))
    assert store.cache_dir() == cache
    monkeypatch.setattr(store.platformdirs, "user_cache_dir", lambda _: "/dev/null/.cache")
    assert store.cache_dir() == cache
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert store.cache_dir() == Path("/dev/null/.cache")


def test_a_temporary_cache_that_somebody_else_may_write_to_is_not_used(homeless):
    cache = homeless / f"ice_notebook-{os.getuid()}"
    cache.mkdir(mode=0o777)
    cache.chmod(0o777)
    (cache / "1").mkdir()
    assert list(upkeep._folders()) == []
    with pytest.raises(LaunchError, match="it is a link, or open to others"):
        RunFolder.create("1")
    cache.rename(homeless / "elsewhere")
    cache.symlink_to(homeless / "elsewhere")
    with pytest.raises(LaunchError, match="it is a link, or open to others"):
        RunFolder.create("2")


def test_log_dir_needs_no_cache(homeless, tmp_path):
    (homeless / f"ice_notebook-{os.getuid()}").write_text("in the way")
    folder = RunFolder.create("1", log_dir=str(tmp_path / "logs"))
    assert folder.path.is_dir()
    folder.discard()
    assert not folder.path.exists()


def test_a_folder_that_cannot_be_named_is_refused_in_a_sentence(monkeypatch, tmp_path):
    with pytest.raises(LaunchError, match=r"log_dir='~nosuchuser/x' names a home folder that is not known"):
        RunFolder.create("1", log_dir="~nosuchuser/x")
    with pytest.raises(LaunchError, match="Give log_dir another folder"):
        RunFolder.create("1", log_dir="a\0b")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(LaunchError, match=r"log_dir='logs' is relative to the working directory, which is gone"):
        RunFolder.create("1", log_dir="logs")


def test_folders_and_files_are_the_users_alone_whatever_the_umask():
    for umask in (0o000, 0o777):
        before = os.umask(umask)
        try:
            folder = RunFolder.create(f"{umask}")
            folder.make_rank_dir(0, 1)
            folder.write_plan(plan())
            with folder.lock():
                pass
        finally:
            os.umask(before)
        modes = {path.relative_to(folder.path): mode(path) for path in [folder.path, *folder.path.rglob("*")]}
        assert {kept for path, kept in modes.items() if (folder.path / path).is_dir()} == {0o700}, modes
        assert {kept for path, kept in modes.items() if (folder.path / path).is_file()} == {0o600}, modes


def test_a_home_sign_in_log_dir_is_the_users_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder.create("1", log_dir="~/logs").path == tmp_path / "logs" / "none_1"


@pytest.mark.parametrize("in_the_way", ["ice_notebook", "ice_notebook/1"])
def test_a_file_in_the_way_is_told(cache, in_the_way):
    path = cache / in_the_way
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    advice = r"Move what is in the way, or set XDG_CACHE_HOME to another folder\."
    with pytest.raises(LaunchError, match=rf"The run folder '.*/1' cannot be made: .*\. {advice}"):
        RunFolder.create("1")
    upkeep.clean_up()  # and nothing else breaks by it


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


@pytest.mark.parametrize("room", [0, 1, 40])
def test_a_full_disk_leaves_no_event_half_and_loses_none(monkeypatch, room):
    history = History().begin().returns(0).returns(1).end()
    folder = make("1", *history.events[:2])
    disk = Disk(monkeypatch)
    with folder.open_journal() as journal:
        disk.room = room
        for event in history.events[2:4]:
            with pytest.raises(OSError, match=FULL):
                journal.append(event)
        assert folder.read_events() == history.events[:2]
        disk.room = 1 << 30
        for event in history.events[4:-1]:
            journal.append(event)
        assert folder.read_events() == history.events[:-1]
        disk.room = 0
        with pytest.raises(OSError, match=FULL):
            journal.append(history.events[-1])
        disk.room = 1 << 30
    assert folder.read_events() == history.events
    assert folder.has_ended()


def test_a_writer_that_dies_on_a_full_disk_leaves_a_journal_that_the_next_can_end(monkeypatch):
    history = History().begin().returns(0)
    folder = make("1", *history.events[:-1])
    disk = Disk(monkeypatch)
    dead = folder.open_journal()
    disk.room = 30
    with pytest.raises(OSError, match=FULL):
        dead.append(history.events[-1])
    os.close(dead._fd)
    disk.room = 1 << 30
    ended = p.RunEnded(at=1.0, outcome=p.Outcome.STOPPED)
    with folder.open_journal() as journal:
        journal.append(ended)
    assert folder.read_events() == [*history.events[:-1], ended]


# ---- whose it is, and who looks at it ------------------------------------------------------------------------------------------------------


def dead() -> Identity:
    return msgspec.structs.replace(own_identity(), pid=1 << 29)  # no process has such a number


def owned(owner: Identity, *, is_locked: bool = True) -> RunFolder:
    folder = RunFolder.create("1")
    folder.owner_file.write_bytes(p.encode(p.Owner(process=owner, is_locked=is_locked)))
    return folder


def test_a_run_says_whose_it_is_and_the_newest_owner_counts():
    folder = owned(dead())
    assert folder.is_owned() is False
    lock = folder.own()
    assert (folder.read_owner().process, folder.is_owned(), is_held(folder.owner_file)) == (own_identity(), True, True)
    lock.release()
    assert (folder.is_owned(), is_held(folder.owner_file)) == (True, False)
    assert sorted(path.name for path in folder.path.iterdir()) == ["owner.json"]


def test_a_folder_that_nobody_owns_is_not_judged():
    folder = RunFolder.create("1")
    assert folder.is_owned() is None
    folder.owner_file.write_text("{}")
    assert folder.is_owned() is None


@pytest.mark.parametrize(
    ("changes", "is_locked", "is_held", "expected"),
    [
        ({"namespace": "of a container"}, True, True, True),
        (
            {"namespace": "of a container"},
            True,
            False,
            False,
        ),  # its kernel would hold it: this machine's locks are seen by all of it
        ({"namespace": "of a container"}, False, False, None),
        ({"boot": "of a machine", "host": "box/1"}, True, True, True),
        ({"boot": "of a machine", "host": "box/1"}, True, False, None),  # locks of other machines need not be seen here
    ],
)
def test_an_owner_that_cannot_be_seen_from_here_is_known_by_its_lock(changes, is_locked, is_held, expected):
    folder = owned(msgspec.structs.replace(own_identity(), **changes), is_locked=is_locked)
    lock = Lock.take(folder.owner_file) if is_held else None
    assert folder.is_owned() is expected
    if lock is not None:
        lock.release()


def test_several_may_look_at_a_run_and_nobody_is_made_to_by_the_question():
    folder = RunFolder.create("1")
    assert (folder.is_locked(), list(folder.path.iterdir())) == (False, [])
    lock, another = folder.lock(), folder.lock()
    assert folder.is_locked()
    lock.release()
    assert folder.is_locked()
    another.release()
    assert not folder.is_locked()


def test_a_folder_that_cannot_be_written_has_no_lock(tmp_path):
    assert RunFolder(tmp_path / "none").lock() is None
