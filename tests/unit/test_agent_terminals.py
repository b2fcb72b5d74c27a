"""What a rank prints to several terminals, in one log."""

from __future__ import annotations

import os
import select
import threading
from types import SimpleNamespace

import pytest

from ice_notebook.agent.ranks import Stream, _open_terminal
from ice_notebook.agent.terminals import Terminals


@pytest.fixture
def printed(tmp_path):
    """Return a rank with two terminals, their other ends, `Terminals` that watch them, and what has come to its log as a function."""
    rank = SimpleNamespace(rank=0, attempt=0, streams=[])
    log = tmp_path / "output.log"
    terminals = Terminals(threading.Condition(), SimpleNamespace(post_output=lambda *_: None))
    ends = []
    for _ in range(2):
        master, slave = _open_terminal()
        stream = Stream(master, rank, files=[os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)])
        rank.streams.append(stream)
        terminals.watch(stream)
        ends.append(slave)
    yield SimpleNamespace(rank=rank, terminals=terminals, ends=ends, text=log.read_text)
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
    write(to_out, out, b"a line\n")
    printed.terminals.read()
    assert printed.text().endswith("a bar that staysa line\n")
