"""What a rank prints to several terminals, in one log."""

from __future__ import annotations

import os
import select
import threading
from types import SimpleNamespace

import pytest
from disks import FULL, Disk
from support import wait_until

from ice_notebook.agent import terminals
from ice_notebook.agent.ranks import Stream, _open_terminal
from ice_notebook.agent.terminals import Terminals
from ice_notebook.host.writing import AppendedFile, Loss
from ice_notebook.wire import protocol as p


@pytest.fixture
def printed(tmp_path):
    """Return a rank with two terminals, their other ends, `Terminals` that watch them, and what has come to its log as a function."""
    rank = SimpleNamespace(rank=0, attempt=0, streams=[], loss=Loss(), index=None, n_logged=0)
    log = tmp_path / "output.log"
    sent = []

    def post_output(_attempt, _rank, output, *, is_kept=True, is_stderr=False):
        sent.append((output, is_kept))

    terminals = Terminals(threading.Condition(), SimpleNamespace(post_output=post_output))
    ends = []
    for _ in range(2):
        master, slave = _open_terminal(p.Wiring())
        stream = Stream(master, rank, files=[AppendedFile(log)])
        rank.streams.append(stream)
        terminals.watch(stream)
        ends.append(slave)
    yield SimpleNamespace(rank=rank, terminals=terminals, ends=ends, text=log.read_text, sent=sent)
    for stream in rank.streams:
        stream.close()
    for end in ends:
        os.close(end)


def write(end: int, stream: Stream, text: bytes) -> None:
    os.write(end, text)
    assert select.select([stream.fd], [], [], 30)[0]


def test_a_line_that_a_rank_writes_piece_by_piece_stays_whole_whatever_it_prints_elsewhere(printed):
    (out, err), (to_out, to_err) = printed.rank.streams, printed.ends
    write(to_out, out, b"out of")
    printed.terminals.read()
    write(to_out, out, b" 3\n")
    write(to_err, err, b"err of 3\n")
    printed.terminals._read(err, 1)  # whichever is found first
    assert printed.text() == "out of 3\nerr of 3\n"
    write(to_err, err, b"a bar that stays")
    printed.terminals.read()
    assert printed.terminals.begun_s is not None
    write(to_out, out, b"a line\n")
    printed.terminals.read()
    assert printed.text().endswith("a line\n")
    wait_until(lambda: printed.terminals.begun_s == 0)
    printed.terminals.let_go()
    assert printed.terminals.begun_s is None
    assert printed.text().endswith("a line\na bar that stays")


def test_what_a_rank_has_begun_is_kept_when_it_ends_and_when_it_is_too_much(printed, monkeypatch):
    (out, err), (to_out, to_err) = printed.rank.streams, printed.ends
    monkeypatch.setattr(terminals, "_BEGUN_BYTES", 10)
    write(to_out, out, b"more than ten bytes")
    printed.terminals.read()
    assert printed.text() == "more than ten bytes"
    write(to_err, err, b"last word")
    printed.terminals.read()
    assert printed.text() == "more than ten bytes"
    printed.terminals.end(printed.rank)
    assert printed.text() == "more than ten byteslast word"


def test_what_the_disk_does_not_take_is_sent_all_the_same_and_counted(printed, monkeypatch):
    out, to_out = printed.rank.streams[0], printed.ends[0]
    disk = Disk(monkeypatch)
    write(to_out, out, b"one\ntwo\n")
    disk.room = 5
    printed.terminals.read()
    assert printed.text() == "one\nt"
    assert printed.sent == [(b"one\nt", True), (b"wo\n", False)]
    assert (printed.rank.loss.size_bytes, printed.rank.loss.why) == (3, FULL)
