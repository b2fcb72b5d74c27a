"""Writing all of something, on a disk that gets full and empty again."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import pytest
from disks import FULL, Disk

from ice_notebook.host.writing import AppendedFile, Loss, say, write_all, write_what_fits


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.fixture
def file(tmp_path: Path):
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    yield fd
    os.close(fd)


def content(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


def test_all_is_written_however_little_the_system_takes_at_a_time(disk, file):
    disk.most = 3
    write_all(file, b"0123456789")
    assert content(file) == b"0123456789"
    assert write_what_fits(file, b"") == (0, None)


def test_what_a_full_disk_did_not_take_is_known(disk, file):
    disk.room = 4
    written, error = write_what_fits(file, b"0123456789")
    assert (written, error.errno, content(file)) == (4, errno.ENOSPC, b"0123")
    with pytest.raises(OSError, match=FULL):
        write_all(file, b"x")


def test_what_is_said_to_a_full_disk_or_a_closed_stream_harms_nobody(disk, capfd):
    say("a line \udce9")
    assert capfd.readouterr().err == "a line \\udce9\n"
    disk.room = 0
    say("another")


# ---- a log file --------------------------------------------------------------------------------------------------------------------------


def test_a_log_says_how_much_is_missing_where_it_is_missing(disk, tmp_path):
    log = AppendedFile(tmp_path / "log")
    assert log.append(b"one\n") == (b"one\n", b"")
    disk.room = 6
    assert log.append(b"two\nthree\n") == (b"two\nth", b"ree\n")
    assert log.append(b"four\n") == (b"", b"four\n")
    assert log.why == FULL
    disk.room = 1 << 20
    kept, lost = log.append(b"five\n")
    note = f"\r\n… 9 B of output is missing here in the log file: {FULL}\r\n".encode()
    assert (kept, lost) == (note + b"five\n", b"")
    assert log.append(b"six\n") == (b"six\n", b"")
    log.close()
    assert (tmp_path / "log").read_bytes() == b"one\ntwo\nth" + note + b"five\nsix\n"


@pytest.mark.parametrize(
    "rooms", [(1, 0, 2, 0, 3, 900), (30, 10, 0, 70, 1, 1, 1, 500), (60, 60, 60, 0, 60, 60, 60, 900), (0, 900, 0, 900)]
)
def test_what_a_caller_hears_is_what_the_file_holds_however_room_comes_and_goes(disk, tmp_path, rooms):
    log = AppendedFile(tmp_path / "log")
    said, own = b"", b""
    for n, room in enumerate(rooms):
        disk.room = room
        data = b"%d line\n" % n * 3
        kept, lost = log.append(data)
        said += kept
        own += data[: len(data) - len(lost)]
    log.close()
    found = (tmp_path / "log").read_bytes()
    assert found == said
    assert re.sub(rb"(\r\n)?[^\n]* of output is missing here in the log file: [^\r]*\r\n", b"", found) == own
    assert found.count(b"is missing here") >= 1


def test_a_log_that_cannot_be_made_is_made_when_there_is_room(tmp_path):
    log = AppendedFile(tmp_path / "folder" / "log")
    assert log.append(b"one\n") == (b"", b"one\n")
    assert log.why == os.strerror(errno.ENOENT)
    (tmp_path / "folder").mkdir()
    kept, lost = log.append(b"two\n")
    assert (kept.endswith(b"\r\ntwo\n"), lost) == (True, b"")
    log.close()
    AppendedFile(tmp_path / "nowhere" / "log").close()


def test_a_loss_is_said_at_once_then_whenever_it_is_twice_as_much_and_at_the_end():
    loss = Loss()
    assert not loss.is_news()
    assert not loss.is_news(is_end=True)
    told = []
    for _ in range(1000):
        loss.add(1, FULL)
        if loss.is_news():
            told.append(loss.size_bytes)
    assert told == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert loss.is_news(is_end=True)
    assert not loss.is_news(is_end=True)
