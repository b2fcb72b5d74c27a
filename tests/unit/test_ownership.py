"""Whose a file is: what others may have put in a run's place is not unpickled, not believed and not appended to."""

from __future__ import annotations

import os
import pickle
from types import SimpleNamespace

import pytest
from test_upkeep import ended, run_id

from ice_notebook.errors import LaunchError, ResultError
from ice_notebook.host import ownership
from ice_notebook.host.ownership import ForeignFileError, is_own_folder, open_own, other_writers
from ice_notebook.kernel import planning
from ice_notebook.kernel.run import Run
from ice_notebook.runs import upkeep
from ice_notebook.runs.store import Journal, RunFolder
from ice_notebook.values import pickles

SOMEBODY = 12345


@pytest.fixture
def as_another(monkeypatch):
    """Return a function after which all files belong to somebody else, as for another user of the machine."""

    def become() -> None:
        monkeypatch.setattr(ownership, "_ROOT", -1)
        monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)

    return become


def test_a_file_of_ones_own_is_opened_and_somebody_elses_and_a_link_are_not(tmp_path, as_another):
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"mine")
    link.symlink_to(file)
    with open(open_own(file), "rb") as opened:
        assert opened.read() == b"mine"
    with pytest.raises(ForeignFileError, match="it is a link"):
        open_own(link)
    with pytest.raises(FileNotFoundError):
        open_own(tmp_path / "gone")
    as_another()
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(ForeignFileError, match="it belongs to "):
        open_own(file)
    assert set(os.listdir("/proc/self/fd")) <= before
    assert not is_own_folder(tmp_path)


def test_a_pickle_of_somebody_else_is_not_loaded(tmp_path, as_another):
    mark = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch '{mark}'",)

    pickles.dump(Evil(), tmp_path / "value", devices=pickles.DeviceTensors.TO_HOST)
    as_another()
    with pytest.raises(
        ResultError,
        match=r"/value is not loaded: it belongs to \w+\. It holds a pickle, and loading one runs code of whoever wrote",
    ):
        pickles.load(tmp_path / "value")
    assert not mark.exists()


def test_the_exception_of_a_run_in_a_folder_of_somebody_else_is_not_loaded(cache, as_another):
    run = Run.open(ended(1).path)
    run._state = SimpleNamespace(attempt=SimpleNamespace(number=0, root=0))
    run._folder.make_rank_dir(0, 0)
    pickles.dump(ValueError("from the rank"), run._folder.exception_file(0, 0), devices=pickles.DeviceTensors.TO_HOST)
    assert repr(run._cause()) == "ValueError('from the rank')"
    as_another()
    assert run._cause() is None


def test_a_journal_in_a_folder_of_somebody_else_is_not_written(tmp_path, as_another):
    (tmp_path / "other").write_bytes(b"not a journal")
    (tmp_path / "events.jsonl").symlink_to(tmp_path / "other")
    with pytest.raises(ForeignFileError, match="it is a link"):
        Journal(tmp_path / "events.jsonl")
    as_another()
    with pytest.raises(ForeignFileError):
        Journal(tmp_path / "fresh.jsonl")
    assert (tmp_path / "other").read_bytes() == b"not a journal"
    assert not (tmp_path / "fresh.jsonl").exists()


def test_runs_that_somebody_else_may_have_put_into_the_cache_are_not_looked_at(cache, tmp_path, monkeypatch):
    ours, shared = ended(1), ended(2, log_dir=str(tmp_path / "shared"))
    real = os.stat

    def stat(path, **options):
        found = real(path, **options)
        is_exchanged = isinstance(path, str | os.PathLike) and os.path.realpath(path) == str(shared.path)
        return os.stat_result((*found[:4], SOMEBODY if is_exchanged else found.st_uid, *found[5:])) if is_exchanged else found

    assert [folder.path.name for folder in upkeep._folders()] == [run_id(1), run_id(2)]
    monkeypatch.setattr(os, "stat", stat)
    assert [folder.path.name for folder in upkeep._folders()] == [ours.path.name]


def test_a_cache_of_somebody_else_is_refused(cache, as_another):
    RunFolder.create("1")
    as_another()
    with pytest.raises(
        LaunchError, match=r"Runs cannot be kept in '.*/ice_notebook': it belongs to .*, who could change them\. Set XDG_CACHE_HOME"
    ):
        RunFolder.create("2")
    assert list(upkeep._folders()) == []


@pytest.mark.parametrize(
    ("mode", "group", "found"),
    [
        (0o700, "mine", ""),
        (0o755, "theirs", ""),
        (0o1777, "theirs", ""),  # as /tmp: names are their owners'
        (0o777, "theirs", "{folder}, where everybody may write"),
        (0o2775, "theirs", "{folder}, where the group project may write"),
        (0o775, "mine", ""),  # a user's own group
    ],
)
def test_a_folder_that_others_may_write_to_is_named(tmp_path, monkeypatch, mode, group, found):
    folder = tmp_path / "logs"
    folder.mkdir()
    folder.chmod(mode)
    own = ownership.name_of(os.geteuid())
    monkeypatch.setattr(ownership, "_ROOT", -1)
    groups = {
        "mine": SimpleNamespace(gr_name=own, gr_mem=[own]),
        "theirs": SimpleNamespace(gr_name="project", gr_mem=[own, "somebody"]),
    }
    monkeypatch.setattr(ownership.grp, "getgrgid", lambda gid: groups[group])
    for parent in tmp_path.parents:
        assert not parent.stat().st_mode & 0o022 or parent.stat().st_mode & 0o1000, f"{parent} is not what this test needs"
    assert other_writers(folder / "deeper") == found.format(folder=folder)


def test_a_launch_warns_of_a_folder_that_others_may_write_to(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.warns(
        UserWarning,
        match=rf"Others can exchange the files of runs in {folder}, where everybody may write\. Choose another .* log_dir",
    ):
        planning.warn_of_other_writers(folder / "none_1", is_users=True)


def test_what_is_written_can_be_read_back(tmp_path):
    pickles.dump({"a": 1}, tmp_path / "value", devices=pickles.DeviceTensors.TO_HOST)
    assert pickles.load(tmp_path / "value") == {"a": 1}
    assert pickle.dumps(ForeignFileError(1, "it is a link", "x"))
