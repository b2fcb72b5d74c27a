"""The other nodes of a run, as the agent that has started it sees them: a port where they join, and their events, output and values.

Runs in threads of that agent: one accepts, one keeps the time, each connection has one that receives and one that sends. What a node says is
recorded as if its ranks were here, so that the kernel sees one run.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from ice_notebook.agent import coordinator as c
from ice_notebook.agent.io import AgentIO
from ice_notebook.agent.meeting import Meeting
from ice_notebook.agent.outbox import Outbox
from ice_notebook.errors import ResultError
from ice_notebook.errors.nodes import NodeError
from ice_notebook.host.listening import listen
from ice_notebook.host.writing import AppendedFile, Loss
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire import control, tls
from ice_notebook.wire import node_messages as m
from ice_notebook.wire import protocol as p
from ice_notebook.wire.messages import Handlers, Message, MessageChannel
from ice_notebook.wire.node_files import IncomingFile, send_file
from ice_notebook.wire.token import parse_token

WAITING_PEERS = 32  # connections that have not proved the token yet: beyond this the oldest gives way
REFUSALS_RECORDED = 50  # a port scanner must not fill the journal
LEAVE_WAIT_S = 2.0  # beyond the ranks' grace, for nodes to end with the run

_OF_THE_RUN = (
    p.RunBegun,
    p.OutputLost,
    p.AttemptFailed,
    p.NodesAwaited,
    p.NodesGathering,
    p.NodeJoined,
    p.NodeLeft,
    p.NodeRefused,
    p.RoundEnded,
    p.StopAsked,
)


class Peer:
    """A node that has joined: its connection and its number."""

    def __init__(self, channel: MessageChannel[Any], name: str) -> None:
        self.channel = channel
        self.name = name  # its host name and its address
        self.outbox = Outbox(channel)
        self.id = -1
        self.files: dict[tuple[int, int, bool], IncomingFile] = {}  # what it is sending: attempt, rank, whether it is the value
        self.values: dict[tuple[int, int], Path | None] = {}  # what has come of each rank, None when it could not be kept
        self.logs: dict[tuple[int, int], AppendedFile] = {}
        self.losses: dict[tuple[int, int], Loss] = {}  # of output, for which there was no room here
        self.ranks: frozenset[int] = frozenset()  # that it has in the attempt that goes on

    def tell(self, message: Message) -> None:
        """Queue a message for it."""
        self.outbox.post(message)


class Hub:
    """See the module. The agent's condition guards what several threads look at."""

    def __init__(self, plan: p.Plan, folder: RunFolder, io: AgentIO) -> None:
        """Listen.

        Raises:
            NodeError: the port is taken, or the address is not one of this machine.
        """
        assert plan.nodes is not None
        self._plan, self._nodes, self._folder, self._io = plan, plan.nodes, folder, io
        self._context = tls.server_context(plan.nodes.identity)
        self._token = parse_token(plan.nodes.token)
        try:
            self._listener = listen(plan.nodes.address, plan.nodes.port)
        except OSError as error:
            raise NodeError.port(plan.nodes.address, plan.nodes.port, error) from error
        self.meeting = Meeting(io.condition, lambda message: self._take_from(0, message))
        self._peers: list[Peer] = []
        self._waiting: list[socket.socket] = []
        self._refusals: set[tuple[str, str]] = set()
        self._is_closing = False
        self._begin = c.Begin(-1, (), 0)
        self._coordinator = c.Coordinator(
            least=plan.nodes.least,
            most=plan.nodes.most,
            max_restarts=plan.max_restarts,
            last_call_s=plan.nodes.last_call,
            join_timeout_s=plan.nodes.join_timeout,
            now=time.monotonic(),
        )
        self._coordinator.join("this machine")
        self._from_node = Handlers(
            {
                control.Output: self._on_output,
                control.Progress: lambda _, progress: self._io.outbox.post_progress(progress),
                control.OfRank: lambda _, message: self._io.outbox.post(message),
                control.Happened: self._on_event,
                m.Piece: self._on_piece,
                m.Leaving: lambda peer, leaving: self._lose(peer, leaving.why),
                **dict.fromkeys([m.NodeReady, m.Done, m.RoundFailed, m.StoreMade], self._on_message),
            }
        )
        # What an event of another node means here: all of them are known, and a new one has to be.
        self._events: dict[type[p.Event], Callable[[Peer, Any], p.Event | None]] = {
            p.AttemptBegun: self._attempt_begun,
            p.RankRunning: _as_it_is,
            p.RankReplaced: _as_it_is,
            p.RankReturned: self._returned,
            p.RankSucceeded: _as_it_is,
            p.ValueLost: _as_it_is,
            p.RankFailed: self._rank_failed,
            p.RankExited: self._exited,
            p.RunEnded: self._ended,
            # The first node alone says what becomes of the run, of rounds and of nodes, and what is missing in its own logs.
            **dict.fromkeys(_OF_THE_RUN, lambda _peer, _event: None),
        }

    def start(self) -> None:
        """Say where others can join, and let them."""
        host, port = self._listener.getsockname()[:2]
        plan = self._plan
        self._io.recorder.record(
            p.NodeJoined(at=time.time(), node=0, name="this machine", n_ranks=plan.world_size, devices=plan.devices)
        )
        self._io.recorder.record(p.NodesAwaited(at=time.time(), address=host, port=port))
        for target, name in ((self._accept, "ice-accept"), (self._keep_time, "ice-nodes")):
            threading.Thread(target=target, name=name, daemon=True).start()

    def close(self) -> int:
        """End with the run: other nodes end too, and have their ranks' grace for it. Returns how many did not."""
        condition = self._io.condition
        with condition:
            self._is_closing = True
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # a close alone would not reach who accepts
            self._listener.close()
            for sock in self._waiting:
                sock.close()
            peers = list(self._peers)
            if not self._coordinator.is_over:  # else they know, and end by themselves, in their own words
                self._tell_stop(p.StopReason.RUN_ENDED)
            condition.notify_all()
            condition.wait_for(lambda: self._io.state.is_urgent or not self._peers, self._plan.grace + LEAVE_WAIT_S)
            if self._io.state.is_urgent:
                condition.wait_for(lambda: not self._peers, LEAVE_WAIT_S)
            left = list(self._peers)
        for peer in peers:
            peer.channel.close()
        return len(left)

    # ---- who comes

    def _accept(self) -> None:
        while True:
            try:
                sock, address = self._listener.accept()
            except OSError:
                if self._is_closing:
                    return
                time.sleep(0.1)  # no descriptor is left just now
                continue
            with self._io.condition:
                self._waiting.append(sock)
                crowded = self._waiting.pop(0) if len(self._waiting) > WAITING_PEERS else None
            if crowded is not None:
                with contextlib.suppress(OSError):
                    crowded.shutdown(socket.SHUT_RDWR)
            try:
                threading.Thread(target=self._welcome, args=[sock, str(address[0])], name="ice-welcome", daemon=True).start()
            except RuntimeError:  # no thread is left just now: it may come again
                with self._io.condition, contextlib.suppress(ValueError):
                    self._waiting.remove(sock)
                sock.close()

    def _welcome(self, sock: socket.socket, address: str) -> None:
        """Take a peer through proof and versions, and serve it to its end."""
        try:
            try:
                stream = tls.accept(sock, self._context, self._token)
            finally:
                with self._io.condition, contextlib.suppress(ValueError):
                    self._waiting.remove(sock)
            channel: MessageChannel[Any] = MessageChannel(stream, m.FromJoin)  # type: ignore[arg-type] # it has what a channel needs of a socket
            peer = self._admit(channel, address)
        except NodeError as error:
            self._refuse(address, str(error))
            return
        except (OSError, EOFError, msgspec.MsgspecError) as error:
            self._refuse(address, str(NodeError.no_proof(error)))
            return
        try:
            self._serve(peer)
        except (OSError, EOFError):
            pass  # gone: what follows from that is seen to below
        except (msgspec.MsgspecError, ValueError) as error:
            self._lose(peer, f"was lost: it sent what cannot be read ({error})")
        finally:
            self._forget(peer)

    def _admit(self, channel: MessageChannel[Any], address: str) -> Peer:
        """Give a node that fits the plan and what it needs for it, and count it once it is equipped.

        Raises:
            NodeError: it does not fit, or there is no room for it.
        """
        try:
            hello = channel.receive_a(m.Hello)
            m.check_versions(hello, m.hello())
            self._check_room()
            nodes = p.replace(self._nodes, token="", identity="", is_first=False)
            channel.send(m.Welcome(plan=p.replace(self._plan, environment={}, nodes=nodes)))
            for name, path in (("sources", self._plan.sources), ("payload", self._plan.payload)):
                send_file(channel, Path(path), name)
            equipped = channel.receive_a(m.Equipped)
            with self._io.condition:
                self._check_room()
                peer = Peer(channel, f"{hello.host}, {address}")
                peer.id = self._coordinator.join(peer.name)
                self._peers.append(peer)
                self._io.recorder.record(
                    p.NodeJoined(at=time.time(), node=peer.id, name=peer.name, n_ranks=equipped.n_ranks, devices=equipped.devices)
                )
        except NodeError as error:
            with contextlib.suppress(OSError):
                channel.send(m.Refused(why=str(error)))
            channel.close()
            raise
        except BaseException:
            channel.close()
            raise
        return peer

    def _check_room(self) -> None:
        if self._is_closing or self._io.state.stop is not None or self._coordinator.is_over:
            raise NodeError.over()
        if self._coordinator.is_full:
            raise NodeError.full(self._nodes.most)

    def _refuse(self, address: str, reason: str) -> None:
        with self._io.condition:
            refusal = address, reason
            if refusal not in self._refusals and len(self._refusals) < REFUSALS_RECORDED and not self._is_closing:
                self._refusals.add(refusal)  # a torchrun tries again and again
                self._io.recorder.record(p.NodeRefused(at=time.time(), address=address, reason=reason))

    def _lose(self, peer: Peer, why: str) -> None:
        with self._io.condition:
            is_expected = self._is_closing or self._coordinator.is_over or self._io.state.stop is not None
            if not is_expected and peer.id in self._coordinator.nodes:
                self._io.recorder.record(p.NodeLeft(at=time.time(), node=peer.id, name=peer.name, reason=why))
                self._obey(self._coordinator.lose(peer.id, why, time.monotonic()))

    def _forget(self, peer: Peer) -> None:
        """See to the end of a connection."""
        peer.channel.close()
        with self._io.condition:
            self._lose(peer, "was lost")
            with contextlib.suppress(ValueError):
                self._peers.remove(peer)
            self._io.condition.notify_all()
        for incoming in peer.files.values():
            incoming.drop()
        for log in peer.logs.values():
            log.close()

    # ---- what is to be done

    def _take_from(self, node: int, message: Any) -> None:
        """Hear a node, this one among them."""
        with self._io.condition:
            now = time.monotonic()
            if isinstance(message, m.NodeReady):
                self._obey(self._coordinator.ready(node, now))
            elif isinstance(message, m.Done):
                self._obey(self._coordinator.done(node, message.number))
            elif isinstance(message, m.RoundFailed):
                self._obey(self._coordinator.failed(node, message, now))
            elif isinstance(message, m.StoreMade):
                self._begin_elsewhere(message)
            self._io.condition.notify_all()  # the time of the next look may have changed

    def _obey(self, orders: list[c.Order]) -> None:
        for order in orders:
            if isinstance(order, c.Begin):
                self._begin = order
                self.meeting.take(self._round(order, 0, 0))
            elif isinstance(order, c.Finished):
                self._tell_all(m.Finish(number=order.number))
            else:
                if order.root is not None:
                    self._io.recorder.record(
                        p.AttemptFailed(at=time.time(), attempt=order.number, root=order.root, restarting=order.restarting)
                    )
                elif order.number >= 0:
                    self._io.recorder.record(
                        p.RoundEnded(at=time.time(), attempt=order.number, reason=order.why, restarting=order.restarting)
                    )
                # With a root cause the report names it.
                self._tell_all(
                    m.Over(number=order.number, restarting=order.restarting, why="" if order.root is not None else order.why)
                )

    def _round(self, begin: c.Begin, node: int, port: int) -> m.Round:
        return m.Round(
            number=begin.number,
            group_rank=begin.members.index(node),
            group_world_size=len(begin.members),
            restarts=begin.restarts,
            address=self._plan.master_addr,
            port=port,
        )

    def _begin_elsewhere(self, made: m.StoreMade) -> None:
        """The store of the round is up: the other nodes may come."""
        if made.number == self._begin.number:
            for peer in self._peers:
                if peer.id in self._begin.members:
                    peer.tell(self._round(self._begin, peer.id, made.port))

    def _tell_all(self, message: Any) -> None:
        self.meeting.take(message)
        for peer in self._peers:
            peer.tell(message)

    def pass_to_rank(self, message: control.ForRank) -> None:
        """Pass a message on to the node that has its rank."""
        with self._io.condition:
            for peer in self._peers:
                if message.rank in peer.ranks:
                    peer.tell(message)

    def _tell_stop(self, reason: p.StopReason) -> None:
        by = None if self._io.state.stop is None else self._io.state.stop.by
        is_urgent = self._io.state.is_urgent or (self._io.state.stop is not None and by is None)
        for peer in self._peers:
            peer.tell(control.Stop(reason=reason, is_urgent=is_urgent, signal=by or signal.SIGINT))

    def _keep_time(self) -> None:
        """Have the coordinator look at the clock when it wants to, and pass on that the run is being stopped."""
        io = self._io
        told = (False, False)
        with io.condition:
            while not self._is_closing:
                deadline = self._coordinator.deadline
                io.condition.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
                self._obey(self._coordinator.tick(time.monotonic()))
                asked = (io.state.stop is not None, io.state.is_urgent)
                if asked != told and io.state.stop is not None:
                    self._tell_stop(io.state.stop.reason)
                    told = asked

    # ---- what nodes say

    def _serve(self, peer: Peer) -> None:
        while True:
            self._from_node.take_frame(peer.channel.receive_frame(), peer)

    def _on_message(self, peer: Peer, message: Any) -> None:
        self._take_from(peer.id, message)

    def _on_event(self, peer: Peer, message: control.Happened) -> None:
        # Clocks differ from machine to machine: that of this one counts.
        event = self._events[type(message.event)](peer, p.replace(message.event, at=time.time()))
        if event is not None:
            self._io.recorder.record(event)

    def _attempt_begun(self, peer: Peer, event: p.AttemptBegun) -> p.Event:
        for rank in event.ranks:
            self._folder.make_rank_dir(event.attempt, rank.rank)
        with self._io.condition:
            peer.ranks = frozenset(rank.rank for rank in event.ranks)
        return p.replace(event, ranks=tuple(p.replace(rank, node=peer.id) for rank in event.ranks))

    def _rank_failed(self, _peer: Peer, event: p.RankFailed) -> p.Event:
        return p.replace(event, failure=p.replace(event.failure, at=event.at))

    def _exited(self, peer: Peer, event: p.RankExited) -> p.Event:
        if (loss := peer.losses.get((event.attempt, event.rank))) is not None:
            self._io.recorder.record_loss(event.attempt, event.rank, loss, is_end=True)
        return event

    def _ended(self, peer: Peer, event: p.RunEnded) -> None:
        self._lose(peer, f"was lost: {event.reason}" if event.reason else "left")

    def _on_output(self, peer: Peer, output: control.Output) -> None:
        attempt, rank = output.attempt, output.rank
        log = peer.logs.get((attempt, rank))
        if log is None:
            self._folder.make_rank_dir(attempt, rank)
            log = peer.logs[attempt, rank] = AppendedFile(self._folder.output_log(attempt, rank))
        kept, lost = log.append(output.body)
        if lost:
            loss = peer.losses.setdefault((attempt, rank), Loss())
            loss.add(len(lost), log.why)
            self._io.recorder.record_loss(attempt, rank, loss)
        if kept:
            self._io.outbox.post_output(attempt, rank, kept)
        if lost:  # the run goes on, and what is shown live is still shown
            self._io.outbox.post_output(attempt, rank, lost, is_kept=False)

    # ---- files

    def _on_piece(self, peer: Peer, piece: m.Piece) -> None:
        """Write a piece of a value, or of an exception, to where a rank of this machine would have put it."""
        attempt, rank, is_value = piece.attempt, piece.rank, piece.what == "value"
        key = attempt, rank, is_value
        incoming = peer.files.get(key)
        if incoming is None:
            self._folder.make_rank_dir(attempt, rank)
            kept, shared = self._folder, self._plan.shared_dir
            places = kept.places_for_value(attempt, rank, shared) if is_value else [kept.exception_file(attempt, rank)]
            incoming = peer.files[key] = IncomingFile(places, piece.size_bytes)
        if incoming.take(piece):
            del peer.files[key]
            if is_value:
                peer.values[attempt, rank] = incoming.path if incoming.error is None else None

    def _returned(self, peer: Peer, event: p.RankReturned) -> p.Event:
        """Return the event for here: the value's file lies elsewhere, or could not be kept."""
        path = peer.values.pop((event.attempt, event.rank), None)
        if path is None:
            reason = str(ResultError.no_room(event.rank, event.value.size_bytes))
            return p.ValueLost(at=event.at, attempt=event.attempt, rank=event.rank, reason=reason)
        return p.replace(event, value=p.replace(event.value, path=str(path)))


def _as_it_is(_peer: Peer, event: p.Event) -> p.Event:
    return event
