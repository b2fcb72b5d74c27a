from __future__ import annotations

import typing
from typing import Any

import msgspec
import pytest
from histories import History, identity, killed, plan, raised

from ice_notebook.wire import protocol as p

STARTS = (
    p.RankStart(rank=0, local_rank=0, device="cuda:2", pid=9000),
    p.RankStart(rank=5, local_rank=1, device="cuda:3", pid=9001, node=2),
)
VALUE = p.Value(path="/dev/shm/x/1", size_bytes=2**40, type_name="dict", text="{'é': '🏖\\n'}", html="<table></table>")
EVENTS = [
    p.RunBegun(at=1.5, agent=identity(7)),
    p.AttemptBegun(at=1.5, attempt=0, restart_count=0, world_size=2, ranks=STARTS, start="cold"),
    p.AttemptBegun(at=1.5, attempt=3, restart_count=2, world_size=0, ranks=()),
    p.RankRunning(at=1.5, attempt=0, rank=1),
    p.RankReplaced(at=1.5, attempt=0, rank=1, pid=12),
    p.RankReturned(at=1.5, attempt=0, rank=1, value=VALUE),
    p.RankSucceeded(at=1.5, attempt=0, rank=1),
    p.ValueLost(at=1.5, attempt=0, rank=1, reason="rank 1's value cannot be sent"),
    p.RankFailed(at=1.5, attempt=0, rank=1, failure=raised()),
    p.RankFailed(at=1.5, attempt=0, rank=1, failure=killed()),
    p.RankExited(at=1.5, attempt=0, rank=1, exit_code=-11, note="crashed"),
    p.OutputLost(at=1.5, attempt=0, rank=1, size_bytes=7_500_000, reason="No space left on device"),
    p.AttemptFailed(at=1.5, attempt=0, root=1, restarting=True),
    p.NodesAwaited(at=1.5, address="127.0.0.1", port=41234),
    p.NodesGathering(at=1.5, where="10.0.0.1:29401", here=("10.0.0.1",), least=2, most=4, problem="nothing listens there"),
    p.NodeJoined(at=1.5, node=1, name="host, 127.0.0.2", n_ranks=2, devices="cpu:0,1"),
    p.NodeLeft(at=1.5, node=1, name="host, 127.0.0.2", reason="was lost"),
    p.NodeRefused(at=1.5, address="127.0.0.3", reason="It is a torchrun."),
    p.RoundEnded(at=1.5, attempt=0, reason="node 1 (host, 127.0.0.2) was lost", restarting=True),
    p.StopAsked(at=1.5, reason=p.StopReason.STOP),
    p.RunEnded(at=1.5, outcome=p.Outcome.FAILED, reason="the agent died", swept=3),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_survives_the_journal_as_one_line(event: Any) -> None:
    line = p.encode(event)
    assert b"\n" not in line
    decoded = p.decode_event(line)
    assert decoded == event
    assert type(decoded) is type(event)


def test_every_kind_of_event_is_tried_here_and_has_a_tag_of_its_own() -> None:
    kinds = set(typing.get_args(p.AnyEvent))
    assert {type(event) for event in EVENTS} == kinds
    assert {kind for kind in p.Event.__subclasses__() if kind.__module__ == p.__name__} == kinds
    assert len({kind.__struct_config__.tag for kind in kinds}) == len(kinds)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_cannot_be_changed(event: Any) -> None:
    with pytest.raises(AttributeError):
        event.at = 2.0


def test_a_line_of_a_later_version_with_more_fields_is_read() -> None:
    line = p.encode(p.RankRunning(at=1.5, attempt=0, rank=1)).replace(b"}", b',"temperature":41}')
    assert p.decode_event(line) == p.RankRunning(at=1.5, attempt=0, rank=1)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"null",
        b'{"event":"rank_running","at":1.5,"attempt":0',
        b'{"event":"rank_running","at":1.5,"attempt":0}',
        b'{"event":"rank_running","at":1.5,"attempt":"0","rank":1}',
        b'{"event":"rank_melted","at":1.5}',
        b'{"event":"run_ended","at":1.5,"outcome":"melted"}',
        b'{"at":1.5,"attempt":0,"rank":1}',
        b"\xff\xfe",
    ],
)
def test_what_is_not_a_whole_event_is_refused(line: bytes) -> None:
    with pytest.raises(msgspec.MsgspecError):
        p.decode_event(line)


def test_every_torn_line_of_a_journal_is_refused_and_none_is_misread() -> None:
    for event in EVENTS:
        line = p.encode(event)
        for length in range(len(line)):
            with pytest.raises(msgspec.MsgspecError):
                p.decode_event(line[:length])


def test_a_journal_is_one_event_a_line() -> None:
    history = History().begin().returns(0, "a\nb").fails(1).group_fails(1).end(p.Outcome.FAILED)
    assert [p.decode_event(line) for line in history.journal.splitlines()] == history.events


def test_a_plan_survives_its_file_and_counts_its_ranks() -> None:
    made = plan(3, timeout=60.0, environment={"HOME": "/home/é", "EMPTY": ""})
    assert p.decode(p.encode(made), p.Plan) == made
    assert made.world_size == 3
    assert plan(1, ranks=()).world_size == 0


def test_the_streams_of_a_rank_survive_as_torchs_numbers() -> None:
    from_plan = p.RankPlan(local_rank=0, device="cpu:0", assigned_device="cpu", redirects=p.Std.ALL, tee=p.Std.ERR)
    decoded = p.decode(p.encode(from_plan), p.RankPlan)
    assert decoded == from_plan
    assert (int(decoded.redirects), int(decoded.tee)) == (3, 2)
    assert p.Std.OUT | p.Std.ERR == p.Std.ALL


def test_a_plan_with_a_field_of_the_wrong_kind_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        p.decode(p.encode(plan()).replace(b'"kernel_pid":4711', b'"kernel_pid":"4711"'), p.Plan)


def test_what_is_left_at_its_default_is_not_written() -> None:
    assert b"note" not in p.encode(p.RankExited(at=1.5, attempt=0, rank=1, exit_code=0))
    assert b"exit_code" in p.encode(p.RankExited(at=1.5, attempt=0, rank=1, exit_code=0))
