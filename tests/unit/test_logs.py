"""What the kernel keeps of the output: numbered lines, bounded reads, gaps that say how much is missing."""

from __future__ import annotations

import random
import threading

import pytest

from ice_notebook.runs.logs import NOTE, PENDING_BYTES, REPLAY, RING_LINES, Limits, RunLogs


def text(n: int, start: int = 0) -> bytes:
    return b"".join(b"line %d\r\n" % i for i in range(start, start + n))


def lines(delta, rank=0):
    return {chunk.first + i: line for chunk in delta.chunks if chunk.rank == rank for i, line in enumerate(chunk.lines)}


def test_a_cursor_reads_what_is_new():
    logs = RunLogs()
    cursor = logs.cursor()
    assert not logs.delta(cursor)
    logs.feed(0, 0, b"a\r\nb\r\n")
    logs.feed(0, 1, b"c\r\n")
    assert [(c.rank, c.first, c.lines) for c in logs.delta(cursor).chunks] == [(0, 0, ("a", "b")), (1, 0, ("c",))]
    assert not logs.delta(cursor)
    logs.feed(0, 0, b"d\r\n")
    assert lines(logs.delta(cursor)) == {2: "d"}


def test_cursors_are_independent():
    logs = RunLogs()
    first = logs.cursor()
    logs.feed(0, 0, b"a\r\n")
    logs.delta(first)
    second = logs.cursor()
    logs.feed(0, 0, b"b\r\n")
    assert lines(logs.delta(first)) == {1: "b"}
    assert lines(logs.delta(second)) == {0: "a", 1: "b"}


def test_a_line_that_changes_is_given_again():
    logs = RunLogs()
    cursor, other = logs.cursor(), logs.cursor()
    logs.feed(0, 0, b"head\r\n 10%")
    assert lines(logs.delta(cursor)) == {0: "head", 1: " 10%"}
    logs.feed(0, 0, b"\r 20%")
    logs.feed(0, 0, b"\r 30%")
    assert lines(logs.delta(cursor)) == {1: "\r 30%"}
    assert lines(logs.delta(other)) == {0: "head", 1: "\r 30%"}


def test_a_change_is_not_lost_when_the_line_is_finished_before_the_next_read():
    logs = RunLogs()
    cursor = logs.cursor()
    logs.feed(0, 0, b" 10%")
    logs.delta(cursor)
    logs.feed(0, 0, b"\r100%\r\n" + text(300))
    assert lines(logs.delta(cursor, REPLAY))[0] == "\r100%"


def test_a_read_is_bounded_and_the_gap_counts_what_is_missing():
    logs = RunLogs()
    cursor = logs.cursor()
    logs.feed(0, 0, text(1000))
    (chunk,) = logs.delta(cursor).chunks
    assert (chunk.first, chunk.end, chunk.lines[-1]) == (800, 1000, "line 999")
    logs.feed(0, 0, text(1))
    assert lines(logs.delta(cursor)) == {1000: "line 0"}


def test_a_read_is_bounded_in_bytes_over_all_ranks():
    logs = RunLogs()
    cursor = logs.cursor()
    for rank in range(8):
        logs.feed(0, rank, (b"x" * 999 + b"\r\n") * 150)
    delta = logs.delta(cursor)
    assert {chunk.rank for chunk in delta.chunks} == set(range(8))
    assert sum(len(line) for chunk in delta.chunks for line in chunk.lines) <= 256 * 1024
    assert all(chunk.end == 150 for chunk in delta.chunks)


def test_the_newest_line_is_given_whatever_its_size():
    logs = RunLogs()
    cursor = logs.cursor()
    logs.feed(0, 0, b"first\r\n" + b"y" * 3000 + b"\r\n")
    (chunk,) = logs.delta(cursor, Limits(rank_lines=10, rank_bytes=100, bytes=100)).chunks
    assert (chunk.first, len(chunk.lines[0])) == (1, 3000)


def test_lines_are_numbered_alike_however_they_come():
    data = text(400) + b"\x1b[31mred\x1b[0m\r\n 1%\r 2%\r\n" + text(200)
    whole, pieces = RunLogs(), RunLogs()
    whole.feed(0, 0, data)
    chance, at = random.Random(5), 0
    while at < len(data):
        size = chance.randint(1, 300)
        pieces.feed(0, 0, data[at : at + size])
        if chance.random() < 0.3:
            pieces.delta(pieces.cursor())
        at += size
    assert lines(whole.since({})) == lines(pieces.since({}))


def test_the_ring_is_bounded():
    logs = RunLogs()
    for k in range(100):
        logs.feed(0, 0, text(1000, k * 1000))
        logs.tail(0, 1)  # reads it
    log = logs._ranks[0]
    assert log.n_lines <= RING_LINES + 1000
    assert lines(logs.since({0: 99_999})) == {99_999: "line 99999"}
    for _ in range(3000):
        logs.feed(0, 0, b"z" * 3999 + b"\r\n")
        logs.tail(0, 1)
    assert log.n_characters < 4_000_000


def test_redrawn_output_is_cut_before_it_is_read_and_its_lines_are_counted():
    logs = RunLogs()
    cursor = logs.cursor()
    logs.feed(0, 0, b"start\r\n")
    coloured = b"\x1b[32mok\x1b[0m some words\r\n"
    for _ in range(200):
        logs.feed(0, 0, coloured * 100)
        assert len(logs._ranks[0].pending) <= 2 * PENDING_BYTES + 100 * len(coloured)
    logs.feed(0, 0, b"end\r\n")
    seen = lines(logs.delta(cursor))
    assert max(seen) == 20_001
    assert seen[20_001] == "end"
    assert seen[20_000] == "\x1b[0;32mok\x1b[m some words"


def test_of_a_flood_that_nobody_reads_the_end_is_kept_and_all_lines_are_counted():
    logs = RunLogs()
    for k in range(200):
        for rank in range(8):
            logs.feed(0, rank, text(1000, k * 1000))
    assert sum(len(log.pending) for log in logs._ranks.values()) < 1_000_000
    assert lines(logs.since({0: 199_990})) == {i: f"line {i}" for i in range(199_990, 200_000)}
    assert {chunk.rank: chunk.end for chunk in logs.since({}).chunks} == dict.fromkeys(range(8), 200_000)


@pytest.mark.parametrize("character", ["x", "é", "語"])
def test_of_an_endless_line_the_beginning_is_shown(character):
    logs = RunLogs()
    for _ in range(100):
        logs.feed(0, 0, (character * 10_000).encode())
    logs.feed(0, 0, b"\r\nnext")
    shown = lines(logs.since({}))
    assert shown[0].startswith(character * 1000)
    assert shown[0].endswith("…")
    assert shown[1] == "next"


def test_a_cut_inside_a_begun_line_keeps_the_count():
    logs = RunLogs()
    logs.feed(0, 0, b"begun")
    for _ in range(100):
        logs.feed(0, 0, b" \x1b[1mx\x1b[0m" * 50 + b"\r\n" + b"\x1b[1my\x1b[0m\r\n" * 400)
    assert logs.since({}).chunks[-1].end == 100 * 401


def test_an_endless_progress_bar_stays_one_line():
    logs = RunLogs()
    cursor = logs.cursor()
    for percent in range(100):
        logs.feed(0, 0, b"\r%2d%% " % percent + b"#" * 4000)
        for _ in range(10):
            logs.feed(0, 0, b"\r%2d%%" % percent)
    (chunk,) = logs.delta(cursor).chunks
    assert (chunk.first, len(chunk.lines)) == (0, 1)
    assert chunk.lines[0].startswith("\r99% #")


def test_bytes_that_the_sender_left_out_are_a_note():
    logs = RunLogs()
    logs.feed(0, 0, b"a\r\nbegun")
    logs.feed(0, 0, b"b\r\n", missed=9_500_000)
    logs.feed(0, 1, b"", missed=12)
    assert lines(logs.since({})) == {0: "a", 1: "begun", 2: NOTE + "… 9.5 MB not shown; the log file has them", 3: "b"}
    assert lines(logs.since({}), rank=1) == {0: NOTE + "… 12 bytes not shown; the log file has them"}


def test_a_new_attempt_begins_with_a_note():
    logs = RunLogs()
    logs.feed(0, 0, b"old, cut sh")
    logs.feed(1, 0, b"new\r\n")
    assert lines(logs.since({})) == {0: "old, cut sh", 1: NOTE + "attempt 2", 2: "new"}
    logs.feed(2, 1, b"late\r\n")
    assert lines(logs.since({}), rank=1) == {0: NOTE + "attempt 3", 1: "late"}


def test_late_output_of_an_old_attempt_is_not_shown():
    logs = RunLogs()
    logs.feed(1, 0, b"new\r\n")
    logs.feed(0, 0, b"old\r\n")
    assert "old" not in lines(logs.since({})).values()


def test_the_tail_is_plain_text_without_progress_bars():
    logs = RunLogs()
    logs.feed(0, 0, b"first\r\n\x1b[31mred\x1b[0m\r\n")
    logs.feed(0, 0, b"\r  0%|    | 0/9\r100%|####| 9/9\r\nloss 0.4\r\n\r\n")
    logs.feed(0, 0, b"\r 50%| half")
    assert logs.tail(0, 20) == ["first", "red", "loss 0.4"]
    assert logs.tail(0, 2) == ["red", "loss 0.4"]
    assert logs.tail(7, 2) == []


def test_the_tail_holds_last_words_without_a_newline_and_only_the_newest_attempt():
    logs = RunLogs()
    logs.feed(0, 0, b"attempt one\r\n")
    logs.feed(1, 0, b"attempt two\r\ndying wor")
    assert logs.tail(0, 20) == ["attempt two", "dying wor"]


def test_since_gives_what_a_page_lacks():
    logs = RunLogs()
    logs.feed(0, 0, text(10))
    logs.feed(0, 1, text(5))
    delta = logs.since({0: 8, 1: 5})
    assert [(c.rank, c.first, c.lines) for c in delta.chunks] == [(0, 8, ("line 8", "line 9"))]
    assert len(lines(logs.since({}), rank=1)) == 5


def test_lines_of_several_ranks_are_given_in_the_order_in_which_they_were_seen():
    logs = RunLogs()
    cursor = logs.cursor()
    for k in range(600):
        logs.feed(0, k % 3, b"line %d\r\n" % k)
        logs.delta(cursor)
    assert [line for chunk in logs.since({}).chunks for line in chunk.lines] == [f"line {k}" for k in range(600)]
    assert [chunk.lines for chunk in logs.since({0: 199, 1: 200, 2: 199}).chunks] == [("line 597",), ("line 599",)]
    for k in range(100):
        logs.feed(0, 0, text(500))
        logs.delta(cursor)
    assert len(logs._ranks[0].times) < 20, "no longer than the lines that they are for"


def test_feeding_and_reading_in_two_threads_loses_no_line():
    logs, stop = RunLogs(), threading.Event()
    cursor, seen, all_lines = logs.cursor(), {}, Limits(rank_lines=10_000, rank_bytes=10**6, bytes=10**7)

    def feed():
        for k in range(300):
            logs.feed(0, 0, text(10, k * 10))
            logs.feed(0, 1, b"\r%d" % k)
        stop.set()

    thread = threading.Thread(target=feed)
    thread.start()
    while not stop.is_set():
        seen.update(lines(logs.delta(cursor, all_lines)))
    thread.join()
    seen.update(lines(logs.delta(cursor, all_lines)))
    assert seen == {i: f"line {i}" for i in range(3000)}
