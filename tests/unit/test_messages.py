"""Messages: what travels is what arrives, every kind has its place in a table, and a message to a rank is passed on unread."""

from __future__ import annotations

import os
import socket
import threading
from types import SimpleNamespace
from typing import Any, get_args

import msgspec
import pytest
from histories import plan

from ice_notebook.agent import server as fork_server
from ice_notebook.agent.hub import _OF_THE_RUN, Hub
from ice_notebook.agent.io import AgentIO
from ice_notebook.host.forks import Marker
from ice_notebook.kernel import agents
from ice_notebook.kernel.follower import Follower
from ice_notebook.rank.control import Control
from ice_notebook.runs.store import RunFolder
from ice_notebook.ui.join import JoinedNode
from ice_notebook.wire import control as c
from ice_notebook.wire import protocol as p
from ice_notebook.wire import tls
from ice_notebook.wire.messages import Bulk, Handlers, Message, MessageChannel, pack_message
from ice_notebook.wire.token import Token


def members(union: Any) -> tuple[type[Any], ...]:
    """Return the kinds of messages in a union, or the one kind."""
    return get_args(union) or (union,)


UNIONS = {name: union for name, union in vars(c).items() if name.startswith(("To", "From")) and members(union)}


class Question(Message, frozen=True, kw_only=True):
    """A feature's own message, which nobody on the way knows."""

    text: str


class Answer(Bulk, frozen=True, kw_only=True):
    """Another one, with bytes."""

    text: str


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    yield ours, theirs
    ours.close()
    theirs.close()


# ---- what travels ------------------------------------------------------------------------------------------------------------------------


def test_a_message_arrives_as_it_was_with_its_bytes_behind_it(ends):
    sent = c.Output(attempt=1, rank=2, missed=3, body=b"\x00\xff")
    MessageChannel(ends[0], c.ToAgent).send(sent)
    assert MessageChannel(ends[1], c.FromAgent).receive() == sent


def test_what_is_not_of_the_union_is_no_message(ends):
    MessageChannel(ends[0], c.FromAgent).send(c.Begin())
    with pytest.raises(msgspec.DecodeError):
        MessageChannel(ends[1], c.FromAgent).receive()


def test_another_kind_than_was_expected_is_named(ends):
    MessageChannel(ends[0], c.FromAgent).send(c.Stopping())
    with pytest.raises(msgspec.DecodeError, match="Stopping came in the place of Taken"):
        MessageChannel(ends[1], c.FromAgent).receive_a(c.Taken)


@pytest.mark.parametrize("name", UNIONS)
def test_no_two_kinds_have_the_same_name(name):
    kinds = members(UNIONS[name])
    assert len({kind.__name__ for kind in kinds}) == len(kinds)
    assert all(issubclass(kind, Message) for kind in kinds)


# ---- the tables --------------------------------------------------------------------------------------------------------------------------


def test_every_message_is_taken_by_who_may_be_told_it(ends, tmp_path):
    channel: MessageChannel[Any] = MessageChannel(ends[0], c.ToAgent)
    io = AgentIO(plan().preparation(), channel)
    assert io.commands.handlers.kinds | {c.Prepare} == set(members(c.ToAgent)), "which is its first word"
    assert io.reports.handlers.kinds == set(members(c.FromRank))
    follower = Follower(SimpleNamespace(plan=plan()), RunFolder(tmp_path), SimpleNamespace(channel=channel))
    assert follower._from_agent.kinds == set(members(c.FromAgent))
    follower._close_pipe()
    node = JoinedNode(channel, plan(), RunFolder(tmp_path))
    assert node._from_agent.kinds == set(members(c.FromAgent))
    assert node._from_first.kinds == set(members(c.ToNode))
    assert Control(channel).kinds | {c.Preload, c.Place} == set(members(c.ToRank)), "which a rank hears before it has its place"
    server = fork_server.Server(channel, SimpleNamespace(spec=Marker), p.Readiness(import_s=0, environment=()), None)
    assert server._from_kernel.kinds | {c.Prepare} == set(members(c.ToServer))


def test_the_kernels_end_of_a_fork_server_knows_all_that_it_says(monkeypatch):
    theirs: list[socket.socket] = []
    monkeypatch.setattr(agents, "_start", lambda *words: theirs.append(socket.socket(fileno=os.dup(words[3]))))
    server = agents.ForkServer(plan().preparation())
    assert server._handlers.kinds == set(members(c.FromServer))
    server._channel.close()
    theirs[0].close()


def test_every_event_of_another_node_is_recorded_or_is_the_runs_own(hub):
    assert hub._from_node.kinds == set(members(c.FromNode))
    assert set(hub._events) == set(members(p.AnyEvent))
    told = [kind for kind in members(p.AnyEvent) if kind not in _OF_THE_RUN and kind is not p.RunEnded]
    assert {p.RankReplaced, p.RankSucceeded} <= set(told)


@pytest.fixture
def hub(tmp_path):
    identity, fingerprint = tls.make_identity()
    nodes = p.NodesPlan(
        least=2,
        most=2,
        address="127.0.0.1",
        last_call=1,
        join_timeout=1,
        token=Token.new(fingerprint).format(),
        identity=identity,
        environment={},
    )
    ours, theirs = socket.socketpair()
    made = p.replace(plan(), nodes=nodes, folder=str(tmp_path))
    hub = Hub(made, RunFolder(tmp_path), AgentIO(made.preparation(), MessageChannel(ours, c.ToAgent)))
    yield hub
    hub._listener.close()
    ours.close()
    theirs.close()


# ---- features --------------------------------------------------------------------------------------------------------------------------


def test_a_feature_adds_a_message_of_its_own_at_the_two_ends():
    said: list[Any] = []
    handlers = Handlers({})
    with pytest.raises(msgspec.DecodeError):
        handlers.take_packed(pack_message(Question(text="?")))
    handlers.on(Question, said.append)
    handlers.take_packed(pack_message(Question(text="?")))
    handlers.on(Answer, lambda rank, answer: said.append((rank, answer)))
    handlers.take_packed(pack_message(Answer(text="!", body=b"\xff")), 3)
    assert said == [Question(text="?"), (3, Answer(text="!", body=b"\xff"))]


def test_a_rank_says_what_it_does_not_understand_and_lives_on(ends, monkeypatch):
    ended = threading.Event()
    monkeypatch.setattr(os, "killpg", lambda *_: ended.set())
    control = Control(MessageChannel(ends[0], c.ToRank))
    heard: list[str] = []
    control.on(Question, lambda question: heard.append(question.text))
    control.start()
    control.listen(lambda: None)
    agent: MessageChannel[Any] = MessageChannel(ends[1], c.FromRank)
    agent.send(Answer(text="what?"))
    agent.send(Question(text="and this?"))
    agent.send(c.Begin())
    assert control.begun.wait(30)
    assert heard == ["and this?"]
    assert "Answer" in agent.receive_a(c.NotUnderstood).what
    agent.close()
    assert ended.wait(30)
    control.join()
