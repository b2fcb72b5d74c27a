"""What an agent knows of rounds: it waits for the next one, and hears when one is over."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from ice_notebook.agent.meeting import Meeting, RunOverError
from ice_notebook.wire import node_messages as m
from ice_notebook.wire.frames import pack
from ice_notebook.wire.messages import Handlers, pack_message


class Agent:
    """An agent's side of a meeting; it can be stopped."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.told: list[Any] = []
        self.is_stopped = False
        self.meeting = Meeting(self.condition, self.told.append)
        self.outcome: list[Any] = []

    def wait_for_round(self, last: int) -> threading.Thread:
        def wait() -> None:
            try:
                self.outcome.append(self.meeting.next_round(last, lambda: self.is_stopped))
            except RunOverError as error:
                self.outcome.append(str(error))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        return thread


def a_round(number: int) -> m.Round:
    return m.Round(number=number, group_rank=0, group_world_size=2, restarts=0, address="127.0.0.1")


def over(number: int, *, restarting: bool = True, why: str = "") -> m.Over:
    return m.Over(number=number, restarting=restarting, why=why)


def test_an_agent_says_that_it_is_ready_and_gets_the_next_round_that_is_not_over() -> None:
    agent = Agent()
    thread = agent.wait_for_round(0)
    for message in (a_round(0), a_round(1), over(1), a_round(2)):
        if message == a_round(1):  # over before anybody has seen it
            with agent.condition:
                agent.meeting.take(message)
                agent.meeting.take(over(1))
            continue
        agent.meeting.take(message)
    thread.join(5)
    assert (agent.told, agent.outcome) == ([m.NodeReady()], [a_round(2)])


def test_a_stop_ends_the_wait_for_a_round() -> None:
    agent = Agent()
    thread = agent.wait_for_round(-1)
    with agent.condition:
        agent.is_stopped = True
        agent.condition.notify_all()
    thread.join(5)
    assert agent.outcome == [None]


def test_the_end_of_the_run_ends_the_wait_for_a_round() -> None:
    agent = Agent()
    thread = agent.wait_for_round(0)
    agent.meeting.take(over(0, restarting=False, why="node 1 (other) was lost"))
    thread.join(5)
    assert agent.outcome == ["node 1 (other) was lost"]
    with pytest.raises(RunOverError):
        agent.meeting.is_over(0)


def test_what_is_told_of_a_round_is_told_once() -> None:
    agent = Agent()
    failure = m.RoundFailed(number=3, rank=1, headline="ValueError: bad loss", is_communication=False)
    for _ in range(2):
        assert not agent.meeting.is_finished(3)
        agent.meeting.tell_failed(failure)
    assert agent.told == [m.Done(number=3), failure]
    agent.meeting.take(m.Finish(number=3))
    assert agent.meeting.is_finished(3)


def test_every_message_reads_back_and_another_word_is_none() -> None:
    messages = [
        m.hello(),
        m.Refused(why="It is full."),
        m.Equipped(n_ranks=2, devices="cpu:0,1"),
        m.NodeReady(),
        m.StoreMade(number=1, port=7),
        m.RoundFailed(number=1, rank=0, headline="x", is_communication=True),
        m.Done(number=1),
        m.Leaving(why="left"),
        a_round(1),
        over(1),
        m.Finish(number=1),
    ]
    hears = Handlers({kind: lambda message: message for kind in map(type, messages)})
    assert [hears.take_packed(pack_message(message)) for message in messages] == messages
    with pytest.raises(msgspec.DecodeError):
        hears.take_packed(pack(b'{"message":"Melted"}'))
