"""Any part of a log file as lines, under the numbers that the live reader gave them, and the search through all of it."""

from __future__ import annotations

import random

import pytest

from ice_notebook.runs.log_files import MARK_LINES, NOT_KEPT, Hit, LogFile
from ice_notebook.runs.logs import NOTE, PENDING_BYTES, RunLogs


def text(n: int, start: int = 0, word: str = "line") -> bytes:
    return b"".join(b"%s %d\r\n" % (word.encode(), i) for i in range(start, start + n))


@pytest.fixture
def logs(tmp_path):
    """A run's logs over files, and `feed(attempt, rank, data)`, which writes and feeds as an agent does."""
    made = RunLogs(lambda attempt, rank: tmp_path / f"{attempt}.{rank}")

    def feed(attempt: int, rank: int, data: bytes, *, is_missed: bool = False, is_kept: bool = True) -> None:
        if not is_kept:  # its disk is full
            made.feed(attempt, rank, data, missed=owed.pop((attempt, rank), 0), is_kept=False)
            return
        with (tmp_path / f"{attempt}.{rank}").open("ab") as file:
            file.write(data)
        if is_missed:
            owed[attempt, rank] = owed.get((attempt, rank), 0) + len(data)
        else:
            made.feed(attempt, rank, data, missed=owed.pop((attempt, rank), 0))

    owed: dict[tuple[int, int], int] = {}
    made.write = feed
    return made


def test_any_part_is_read_back_under_its_numbers(logs):
    for k in range(40):
        logs.write(0, 0, text(500, 500 * k))
    for first in (0, 1, 499, 500, 12_345, 19_990):
        lines = logs.read_back(0, first, 20)
        assert lines == [f"line {i}" for i in range(first, min(first + 20, 20_000))]
    assert logs.read_back(0, 20_000, 5) == []
    assert logs.read_back(7, 0, 5) == []


def test_lines_are_read_back_however_the_output_was_split(logs):
    chance, at, data = random.Random(3), 0, text(6_000, word="wört")
    while at < len(data):
        size = chance.randint(1, 9_000)
        logs.write(0, 0, data[at : at + size])
        at += size
    for first in (0, 2_500, 5_990):
        assert logs.read_back(0, first, 10) == [f"wört {i}" for i in range(first, first + 10)]


def test_what_the_kernel_was_not_sent_is_counted_and_read_back(logs):
    logs.write(0, 0, text(10) + b"half a li")
    logs.write(0, 0, b"ne\r\n" + text(5_000, 11) + b"another ha", is_missed=True)
    logs.write(0, 0, b"lf\r\n" + text(3, 5_012))
    delta = logs.delta(logs.cursor())
    assert delta.chunks[-1].end == 5_015
    assert [chunk.first for chunk in delta.chunks] == [0, 5_011]
    assert logs.read_back(0, 9, 3) == ["line 9", "half a line", "line 11"]
    assert logs.read_back(0, 5_009, 10) == ["line 5009", "line 5010", "another half", "line 5012", "line 5013", "line 5014"]


def test_a_gap_in_redrawn_output_keeps_the_numbers_of_what_follows(logs):
    logs.write(0, 0, text(3))
    nested = b"".join(
        b"outer %d\r\ninner %d\x1b[A\r" % (i, i) for i in range(9_000)
    )  # a newline a time, and always the same two lines
    assert len(nested) > 2 * PENDING_BYTES
    logs.write(0, 0, nested + b"\r\n\r\n" + text(3, 3))
    delta = logs.delta(logs.cursor())
    after = next(chunk.first + chunk.lines.index("line 3") for chunk in delta.chunks if "line 3" in chunk.lines)
    assert logs.read_back(0, after, 3) == ["line 3", "line 4", "line 5"]
    assert len(logs.read_back(0, 0, after)) == after


def test_lines_that_found_no_room_in_the_file_move_nothing_in_it(logs):
    cursor = logs.cursor()
    logs.write(0, 0, text(10) + b"ha")
    logs.write(0, 0, b"lf\r\n" + text(2, 11) + b"line", is_kept=False)
    logs.write(0, 0, b" 13\r\n" + text(3, 14))
    shown = [line for chunk in logs.delta(cursor).chunks for line in chunk.lines]
    assert shown == [*(f"line {i}" for i in range(10)), "half", *(f"line {i}" for i in range(11, 17))], "live all is shown"
    logs.write(0, 0, text(1_000, 17))
    logs.delta(cursor)
    assert logs.read_back(0, 8, 8) == ["line 8", "line 9", "ha", NOT_KEPT, NOT_KEPT, " 13", "line 14", "line 15"]
    assert logs.read_back(0, 1_010, 2) == ["line 1010", "line 1011"]
    assert [hit.line for _, hit in logs.search("line 1000", [0])] == [1_000]


def test_a_flood_that_finds_no_room_keeps_the_numbers_of_what_follows(logs):
    logs.write(0, 0, text(1_000))
    for k in range(1, 50):
        logs.write(0, 0, text(1_000, 1_000 * k), is_kept=False)
        if k == 20:
            logs.delta(logs.cursor())
    logs.write(0, 0, text(700, 50_000), is_missed=True)
    logs.write(0, 0, text(10, 50_700))
    delta = logs.delta(logs.cursor())
    end = delta.chunks[-1].end
    assert delta.chunks[-1].lines[-1] == "line 50709"
    assert logs.read_back(0, end - 711, 3) == [NOT_KEPT, "line 50000", "line 50001"]
    assert logs.read_back(0, end - 2, 2) == ["line 50708", "line 50709"]
    assert logs.read_back(0, 998, 3) == ["line 998", "line 999", NOT_KEPT]
    assert len(logs._ranks[0].file._lines) < 20


def test_every_attempt_is_numbered_on_and_has_its_file(logs):
    logs.write(0, 0, text(3))
    logs.write(0, 1, text(2))
    logs.write(1, 0, text(4, 100))
    assert logs.attempts() == {0: {0: 0, 1: 0}, 1: {0: 4}}
    assert logs.read_back(0, 0, 100) == ["line 0", "line 1", "line 2", NOTE + "attempt 2", *(f"line {i}" for i in range(100, 104))]


def test_a_run_that_is_over_gives_the_end_of_its_files_at_once_and_the_rest_when_asked(logs, tmp_path):
    (tmp_path / "0.0").write_bytes(text(100_000))
    (tmp_path / "1.0").write_bytes(text(10, 7))
    logs.take_file(0, 0)
    logs.take_file(1, 0)
    logs.take_file(1, 1)  # it has none
    assert logs.attempts() == {0: {0: 0}, 1: {0: 100_001}}
    assert logs.read_back(0, 50_000, 2) == ["line 50000", "line 50001"]
    assert logs.read_back(0, 99_999, 3) == ["line 99999", NOTE + "attempt 2", "line 7"]


def test_a_file_that_is_gone_gives_nothing(logs, tmp_path):
    logs.write(0, 0, text(3))
    (tmp_path / "0.0").unlink()
    assert logs.read_back(0, 0, 3) == []
    assert list(logs.search("line", [0])) == []


def test_without_files_what_was_missed_is_told(tmp_path):
    logs = RunLogs()
    logs.feed(0, 0, b"a\r\n", missed=2_000_000)
    assert logs.since({}).chunks[0].lines[0] == NOTE + "… 2.0 MB not shown; the log file has them"


def test_marks_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("ice_notebook.runs.log_files.MOST_MARKS", 16)
    (tmp_path / "log").write_bytes(text(100 * MARK_LINES))
    file = LogFile(tmp_path / "log", 0)
    whole = (tmp_path / "log").read_bytes()
    at = 0
    for line in range(100 * MARK_LINES):
        file.mark(line, at)
        at = whole.index(b"\n", at) + 1
    assert len(file._lines) <= 16
    assert file.read(77 * MARK_LINES + 3, 1) == [f"line {77 * MARK_LINES + 3}"]


def test_a_search_finds_each_line_once_whatever_its_case(logs):
    logs.write(0, 0, text(2_000) + b"  1%|#\r 50%|##\r100%|### Loss\r\n" + text(2_000, 3_000))
    logs.write(0, 1, b"LOSS: 0.5, loss: 0.6\r\n\x1b[31mno loss\x1b[0m here\r\n")
    hits = list(logs.search("loss", [0, 1]))
    assert hits == [(0, Hit(2_000, "100%|### Loss")), (1, Hit(0, "LOSS: 0.5, loss: 0.6")), (1, Hit(1, "no loss here"))]
    assert [hit.line for _, hit in logs.search("line 3999", [0])] == [3_000]
    assert list(logs.search("loss", [1], goes_on=lambda: False)) == []
    assert list(logs.search(".*", [0, 1])) == []


def test_a_hit_in_a_very_long_line_is_cut_around_the_place(logs):
    logs.write(0, 0, b"x" * 500_000 + b"needle" + b"y" * 500_000 + b"\r\n")
    ((_, hit),) = logs.search("NEEDLE", [0])
    assert "needle" in hit.text
    assert len(hit.text) <= 300
