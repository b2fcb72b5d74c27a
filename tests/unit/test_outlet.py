"""A launcher's standard stream: whatever it is and whatever becomes of it, what can be written is, once."""

from __future__ import annotations

import errno
import fcntl
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ice_notebook.ui.outlet import Outlet, is_same_place

MUCH = "".join(f"line {n} of some words that make it longer\n" for n in range(20_000))


class Pipe:
    """A pipe with a text stream at one end."""

    def __init__(self, encoding: str = "utf-8") -> None:
        self.reader, self.writer = os.pipe()
        self.stream = open(self.writer, "w", encoding=encoding)

    def read(self) -> bytes:
        return os.read(self.reader, 1 << 20)

    def close_reader(self) -> None:
        os.close(self.reader)
        self.reader = -1


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.stream.close()
    if made.reader >= 0:
        os.close(made.reader)


def test_a_reader_that_is_slow_is_not_waited_for_and_gets_everything(pipe: Pipe) -> None:
    outlet = Outlet(pipe.stream)
    outlet.write(MUCH)
    assert not outlet.send()
    came = b""
    while not outlet.send():
        came += pipe.read()
    os.set_blocking(pipe.reader, False)
    assert came + pipe.read() == MUCH.encode()


def test_a_pipe_that_must_not_be_waited_for_gets_everything_too(pipe: Pipe) -> None:
    os.set_blocking(pipe.writer, False)
    fcntl.fcntl(pipe.writer, fcntl.F_SETPIPE_SZ, 4096)
    outlet = Outlet(pipe.stream)
    outlet.write(MUCH[:100_000])
    came = b""
    while not outlet.send():
        came += pipe.read()
    os.set_blocking(pipe.reader, False)
    assert came + pipe.read() == MUCH[:100_000].encode()


def test_a_reader_that_is_gone_is_known_by_it_and_nothing_is_raised(pipe: Pipe) -> None:
    outlet = Outlet(pipe.stream)
    outlet.write("heard\n")
    assert outlet.send()
    assert not outlet.is_gone
    pipe.close_reader()
    for _ in range(2):
        outlet.write("unheard\n")
        assert outlet.send()
        assert (outlet.is_gone, outlet.has_lost_reader, outlet.fault) == (True, True, "")


def test_a_full_disk_keeps_what_waits_until_there_is_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    room = [5]
    write = os.write

    def write_to_small_disk(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(fd, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    with (tmp_path / "log").open("w") as stream:
        outlet = Outlet(stream)
        monkeypatch.setattr("ice_notebook.ui.outlet.os.write", write_to_small_disk)
        outlet.write("0123456789\n")
        assert not outlet.send()
        assert outlet.fault == "No space left on device"
        outlet.wait(1000)  # nothing would end it
        room[0] = 100
        assert outlet.send()
        assert outlet.fault == ""
        assert not outlet.is_gone
    assert (tmp_path / "log").read_text() == "0123456789\n"


def test_the_device_that_is_always_full_is_no_error_either() -> None:
    with open("/dev/full", "w", buffering=1) as stream:
        outlet = Outlet(stream)
        outlet.write("unheard\n")
        assert not outlet.send()
        assert outlet.fault == "No space left on device"


def test_a_descriptor_that_somebody_closed_is_a_reader_that_never_was(tmp_path: Path) -> None:
    stream = open(os.open(tmp_path / "read_only", os.O_RDONLY | os.O_CREAT), "w", closefd=True)
    outlet = Outlet(stream)
    outlet.write("x")
    assert outlet.send()
    assert (outlet.is_gone, outlet.has_lost_reader) == (True, False)
    stream.close()


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "gbk", "utf-8"])
def test_what_an_encoding_cannot_say_is_escaped_and_bytes_stay_as_they_are(encoding: str) -> None:
    pipe = Pipe(encoding)
    outlet = Outlet(pipe.stream)
    outlet.write("run · → \udce9\n")
    outlet.write_bytes(b"caf\xe9 \xe2\x86\x92\n")
    assert outlet.send()
    words, data = pipe.read().splitlines()
    assert words == "run · → \udce9".encode(encoding, "backslashreplace")
    assert data == b"caf\xe9 \xe2\x86\x92"
    pipe.stream.close()
    os.close(pipe.reader)


def test_what_the_program_has_printed_itself_comes_first(pipe: Pipe) -> None:
    pipe.stream.write("the program's\n")
    outlet = Outlet(pipe.stream)
    outlet.write("ours\n")
    assert outlet.send()
    assert pipe.read() == b"the program's\nours\n"


class Strict(io.StringIO):
    """A stream of somebody else's, with an encoding and no descriptor."""

    encoding = "ascii"

    def write(self, text: str) -> int:
        text.encode("ascii")
        return super().write(text)


def test_a_stream_of_somebody_elses_is_written_to_as_text() -> None:
    stream = Strict()
    outlet = Outlet(stream)
    outlet.write("a → b\n")
    outlet.write_bytes(b"plain\n")
    assert outlet.send()
    assert stream.getvalue() == "a \\u2192 b\nplain\n"
    stream.close()
    outlet.write("x")
    assert outlet.send()
    assert outlet.is_gone
    assert not outlet.has_lost_reader


@pytest.mark.parametrize(
    ("term", "is_terminal"), [("xterm-256color", True), ("dumb", False), ("", False), (None, False), ("screen", True)]
)
def test_a_terminal_that_cannot_draw_is_none(monkeypatch: pytest.MonkeyPatch, term: str | None, is_terminal: bool) -> None:  # noqa: FBT001
    if term is None:
        monkeypatch.delenv("TERM", raising=False)
    else:
        monkeypatch.setenv("TERM", term)
    master, slave = os.openpty()
    with open(slave, "w") as stream:
        assert Outlet(stream).is_terminal is is_terminal
    os.close(master)


def test_two_streams_may_go_to_one_place(tmp_path: Path, pipe: Pipe) -> None:
    (tmp_path / "x").touch()
    with (tmp_path / "x").open() as one, (tmp_path / "x").open() as two, open(os.dup(pipe.writer), "w") as same:
        assert is_same_place(one, two)
        assert is_same_place(pipe.stream, same)
        assert not is_same_place(one, pipe.stream)
    stream = io.StringIO()
    assert is_same_place(stream, stream)
    assert not is_same_place(stream, io.StringIO())
