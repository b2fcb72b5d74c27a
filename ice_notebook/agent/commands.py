"""What the kernel, or the process with which a node takes part, has an agent do. Runs in the agent's io thread."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from ice_notebook.agent.outbox import Outbox
from ice_notebook.agent.starter import Starter
from ice_notebook.agent.state import AgentState, StopRequest
from ice_notebook.host import processes
from ice_notebook.host.writing import say
from ice_notebook.wire import control as c
from ice_notebook.wire import node_messages as m
from ice_notebook.wire import protocol as p
from ice_notebook.wire.messages import Handlers


class Commands:
    """See the module. What has to do with other nodes is the affair of whoever sets `on_coordinator` and `on_message_for_other_node`."""

    def __init__(
        self,
        state: AgentState,
        starter: Starter,
        outbox: Outbox,
        begin: Callable[[p.Plan], None],
        request_stop: Callable[[StopRequest], None],
    ) -> None:
        """`begin` has the agent do a run, and `request_stop` stops it."""
        self._state = state
        self._starter = starter
        self._outbox = outbox
        self._begin = begin
        self._request_stop = request_stop
        self._offered: p.Plan | None = None  # the kernel has not said yet that this agent is the one to do it
        self.on_coordinator: Callable[[Any], None] = lambda _: None
        self.on_message_for_other_node: Callable[[c.ForRank], None] = _drop
        self.handlers = Handlers(
            {
                c.TakeRun: lambda message: self._begin(message.plan),
                c.Offer: self._on_offer,
                c.Settled: self._on_settled,
                c.SetPace: self._on_pace,
                c.AddSpares: self._on_spares,
                c.Resize: lambda message: self._starter.resize(message.columns, message.rows),
                c.Preload: lambda message: self._starter.preload(message.modules),
                c.PassSignal: self._on_signal,
                c.Stop: self._on_stop,
                c.ForRank: self._on_message_for_rank,
                **dict.fromkeys([m.Round, m.Over, m.Finish], self._on_word_of_coordinator),
            }
        )

    def _on_offer(self, message: c.Offer) -> None:
        self._outbox.post(c.Taken())
        self._offered = message.plan  # the agent touches nothing of the run before `Settled`

    def _on_settled(self, _: c.Settled) -> None:
        if self._offered is not None:
            self._begin(self._offered)

    def _on_pace(self, message: c.SetPace) -> None:
        self._state.set_pace(message.at_a_time)
        self._starter.keep_pace()

    def _on_spares(self, message: c.AddSpares) -> None:
        self._state.want_ranks(message.count)
        self._starter.keep_pace()

    def _on_stop(self, message: c.Stop) -> None:
        self._outbox.post(c.Stopping())
        self._request_stop(StopRequest(message.reason, signal.Signals(message.signal)))
        if message.is_urgent:
            self._state.press_again()

    def _on_signal(self, message: c.PassSignal) -> None:
        with self._state.condition:
            for rank in self._state.ranks:
                if rank.rank >= 0 and not rank.has_exited and rank.handles(message.number):
                    processes.signal_rank(rank, signal.Signals(message.number))

    def _on_message_for_rank(self, message: c.ForRank) -> None:
        """Pass on a message for a rank, which is here or another node's."""
        with self._state.condition:
            mine = next((rank for rank in self._state.ranks if rank.rank == message.rank and rank.has_accepted), None)
        if mine is not None:
            mine.tell(message.body)
        else:
            self.on_message_for_other_node(message)

    def _on_word_of_coordinator(self, message: m.Round | m.Over | m.Finish) -> None:
        self.on_coordinator(message)


def _drop(message: c.ForRank) -> None:
    say(f"a message is for rank {message.rank}, which is not there")
