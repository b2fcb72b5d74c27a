"""All that a rank has printed: from its file, from memory where the disk was full, told apart by stream where that is known."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from ice_notebook.runs import rank_output
from ice_notebook.runs.rank_output import OutputReader, RankOutput
from ice_notebook.runs.stream_index import STDERR, STDOUT, StreamIndex, StreamIndexWriter


class Rank:
    """A rank whose output goes to a file, and to whoever follows it."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "output.log"
        self.log.touch()
        self.output = RankOutput(self.log)

    def prints(self, data: bytes, *, is_told: bool = True) -> None:
        with self.log.open("ab") as file:
            file.write(data)
        if is_told:
            self.output.feed(data)


@pytest.fixture
def rank(tmp_path: Path) -> Rank:
    return Rank(tmp_path)


def read_all(reader: OutputReader) -> bytes:
    found = b""
    while pieces := reader.read():
        found += b"".join(piece.data if not piece.lost else b"<%d lost>" % piece.lost for piece in pieces)
    return found


def test_a_reader_gets_everything_however_far_it_is_behind(rank: Rank) -> None:
    data = random.Random(0).randbytes(1_000_000)
    reader = rank.output.reader()
    for start in range(0, len(data), 70_000):
        rank.prints(data[start : start + 70_000])
    assert reader.available == len(data)
    assert read_all(reader) == data
    rank.prints(b"more")
    assert read_all(reader) == b"more"
    assert read_all(rank.output.reader(len(data))) == b"more"


def test_what_was_not_told_is_in_the_file(rank: Rank) -> None:
    reader = rank.output.reader()
    rank.prints(b"a" * 1000, is_told=False)
    rank.prints(b"b", is_told=False)
    rank.output.feed(b"b", missed=1000)
    rank.prints(b"the last words of a rank whose agent was killed", is_told=False)
    assert read_all(reader) == b"a" * 1000 + b"b"
    rank.output.take_all()
    assert read_all(reader) == b"the last words of a rank whose agent was killed"


def test_what_is_not_in_the_file_stands_in_its_place(rank: Rank) -> None:
    rank.prints(b"one ")
    rank.output.feed(b"two ", is_kept=False)
    rank.output.feed(b"three ", is_kept=False)
    rank.prints(b"four")
    assert read_all(rank.output.reader()) == b"one two three four"
    assert read_all(rank.output.reader(4)) == b"two three four"
    assert read_all(rank.output.reader(5)) == b"our"


def test_memory_is_bounded_and_what_is_lost_is_counted(rank: Rank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_output, "KEPT_BYTES", 10)
    rank.output.feed(b"0123456", is_kept=False)
    rank.output.feed(b"789abc", is_kept=False)
    rank.output.feed(b"d", is_kept=False)
    assert read_all(rank.output.reader()) == b"0123456<3 lost>abc<1 lost>"


def test_a_file_that_is_removed_can_still_be_read_and_one_that_was_never_there_is_lost(rank: Rank, tmp_path: Path) -> None:
    reader = rank.output.reader()
    rank.prints(b"before ")
    assert read_all(reader) == b"before "
    with rank.log.open("ab") as file:
        rank.log.unlink()
        file.write(b"after")
    rank.output.feed(b"after")
    assert read_all(reader) == b"after"
    output = RankOutput(tmp_path / "never" / "output.log")
    output.feed(b"12345")
    assert read_all(output.reader()) == b"<5 lost>"


@pytest.mark.parametrize("n_bytes", [0, 1, 5, 6, 7, 25, 1000])
def test_a_reader_may_skip_to_the_beginning_of_a_line(rank: Rank, n_bytes: int) -> None:
    data = b"".join(b"line %d\n" % n for n in range(100))
    rank.prints(data)
    reader = rank.output.reader()
    lines = reader.skip(n_bytes) if n_bytes else 0
    left = read_all(reader)
    assert data.endswith(left)
    assert left[:5] in {b"line ", b""}
    assert lines == 100 - left.count(b"\n")
    assert 0 <= len(data) - len(left) - n_bytes < 10 or not left


def test_streams_are_told_apart_wherever_a_read_ends(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    writer, index = StreamIndexWriter(log), StreamIndex(log)
    chance = random.Random(1)
    parts = [(chance.choice([STDOUT, STDERR]), chance.randbytes(chance.randint(1, 50))) for _ in range(500)]
    at = 0
    for std, data in parts:
        writer.note(std, at)
        at += len(data)
    writer.close()
    whole = b"".join(data for _, data in parts)
    for longest in (1, 7, 300, 100_000):
        found: dict[bool, bytes] = {False: b"", True: b""}
        start = 0
        while start < len(whole):
            data = whole[start : start + chance.randint(1, longest)]
            for part, at, is_stderr in index.split(data, start):
                assert whole[at : at + len(part)] == part
                found[is_stderr] += part
            start += len(data)
        assert found == {is_err: b"".join(data for std, data in parts if (std == STDERR) is is_err) for is_err in (False, True)}


def test_half_a_line_of_an_index_is_none_and_without_an_index_there_is_one_stream(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    assert list(StreamIndex(log).split(b"abc", 7)) == [(b"abc", 7, False)]
    (tmp_path / "streams").write_bytes(b"3 2\n5")
    index = StreamIndex(log)
    assert list(index.split(b"abcdefgh", 0)) == [(b"abc", 0, False), (b"defgh", 3, True)]
    with (tmp_path / "streams").open("ab") as file:
        file.write(b"1 nonsense\n8 1\n")
    assert list(index.split(b"xyz", 7)) == [(b"x", 7, True), (b"yz", 8, False)]
