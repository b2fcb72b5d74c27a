"""Rules of the agent's io thread, without its thread."""

from __future__ import annotations

import selectors
import socket
import struct
from types import SimpleNamespace

import pytest
from histories import plan as make_plan

from ice_notebook.agent.io import AgentIO
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import Loaded
from ice_notebook.wire.frames import Channel, pack


@pytest.fixture
def io(tmp_path):
    ours, theirs = socket.socketpair()
    payload = tmp_path / "payload"
    payload.write_bytes(b"x")
    plan = p.replace(make_plan(2), payload=str(payload), folder=str(tmp_path))
    made = AgentIO(plan.preparation(), Channel(ours))
    made.begin(plan)
    made.state.begin_attempt(is_last=True)
    yield made
    ours.close()
    theirs.close()


def test_the_payload_stays_until_every_rank_has_it_also_those_that_have_no_place_yet(io, tmp_path):
    first, second = (SimpleNamespace(rank=rank, attempt=0, has_loaded=False) for rank in (0, -1))
    io.state.ranks = [first, second]
    io.reports.handlers.take(Loaded(), first)
    assert (tmp_path / "payload").exists()
    second.rank = 1
    io.reports.handlers.take(Loaded(), second)
    assert not (tmp_path / "payload").exists()


def test_the_payload_stays_as_long_as_the_group_may_be_started_again(io, tmp_path):
    io.state.begin_attempt(is_last=False)
    io.state.ranks = [SimpleNamespace(rank=rank, attempt=0, has_loaded=False) for rank in (0, 1)]
    for rank in io.state.ranks:
        io.reports.handlers.take(Loaded(), rank)
    assert (tmp_path / "payload").exists()


@pytest.mark.parametrize(
    "said",
    [
        struct.pack("!IQ", 4, 0) + b"\xff\xff\xff\xff",  # no header
        struct.pack("!IQ", 2, 0) + b"{}",
        pack(b'{"message":"Tied"}!'),
        pack(b'{"message":"Progress"'),
        pack(b'{"message":"Progress"}'),  # not what it must hold
        pack(b'{"message":"Failed","failure":{}}', b"???"),
        pack(b'{"message":"Returned","value":{}}', b"{}"),
        pack(b'{"message":"Begin"}'),  # an agent's word
    ],
)
def test_what_user_code_writes_to_its_ranks_socket_ends_the_conversation_and_not_the_agent(io, said, capfd):
    ours, theirs = socket.socketpair()
    rank = SimpleNamespace(channel=Channel(ours), rank=1, attempt=0, hung_up_at=None)
    io._selector.register(rank.channel, selectors.EVENT_READ)
    with theirs:
        theirs.sendall(said)
        io._on_rank(rank)
    assert rank.hung_up_at is not None
    assert rank.channel.fileno() not in io._selector.get_map()
    assert "said what cannot be understood" in capfd.readouterr().err
    ours.close()
