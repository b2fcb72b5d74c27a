"""The agent from its first line to its last: `python -c 'from ice_notebook.agent.main import main; main()' <descriptor>`."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from ice_notebook import processes
from ice_notebook import protocol as p
from ice_notebook.agent.io import AgentIO, StopRequest
from ice_notebook.agent.meeting import Meeting
from ice_notebook.errors import NodeError
from ice_notebook.frames import Channel
from ice_notebook.nodes.messages import MESSAGE, decode
from ice_notebook.store import RunFolder

if TYPE_CHECKING:
    from ice_notebook.agent.hub import Hub

_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main() -> None:
    """Be an agent: take a plan from the kernel, do the run, leave. Never returns."""
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    kernel = Channel(socket.socket(fileno=fd))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are the kernel's; what follows from them comes as a message
    # Orphans of ranks become children of this process: they can be found, and nothing is left to the system's init.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        plan = p.decode(kernel.receive().body, p.Plan)
    except EOFError:
        os._exit(0)
    Agent(plan, kernel).run()


class Agent:
    """A run from the agent's side."""

    def __init__(self, plan: p.Plan, kernel: Channel) -> None:
        self._plan = plan
        self._folder = RunFolder(Path(plan.folder))
        self._io = AgentIO(plan, self._folder, kernel)
        self._io.on_stop = self._end_early
        self._hub: Hub | None = None  # the other nodes, when this agent has started the run
        self._is_elastic = False  # torch's agent is in charge: it ends the ranks

    def run(self) -> None:
        """Do the run and leave the process."""
        plan, io = self._plan, self._io
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        started = processes.start_time(os.getpid()) or 0.0
        io.record(p.RunBegun(at=time.time(), agent_pid=os.getpid(), agent_started=started))
        io.start()
        io.start_ranks(plan.world_size)  # they import torch while this process does
        outcome, reason, swept = p.Outcome.FAILED, "", 0
        try:
            meeting = self._meet()
            from ice_notebook.agent import elastic  # noqa: PLC0415 - imports torch, in parallel with the ranks

            with io.condition:
                io.condition.wait_for(lambda: io.stop is None)  # stopped: `_end_early` is about to end this process
                self._is_elastic = True
            elastic.start_clock(plan, io)
            outcome, reason, swept = elastic.run_elastic(plan, self._folder, io, meeting)
        except Exception as error:
            traceback.print_exc()
            reason = _in_words(error, plan)
        self._leave(outcome, reason, swept)

    def _meet(self) -> Meeting | None:
        """Return how this agent hears of other nodes, when there may be any. They can join while torch is still being imported."""
        plan, io = self._plan, self._io
        if plan.nodes is None:
            return None
        if plan.nodes.is_first:
            from ice_notebook.agent.hub import Hub  # noqa: PLC0415 - for several nodes only

            hub = Hub(plan, self._folder, io)
            hub.start()
            self._hub = hub
            return hub.meeting
        meeting = Meeting(io.condition, lambda message: io.outbox.post(MESSAGE, p.encode(message)))
        io.on_message = lambda body: meeting.take(decode(body))
        return meeting

    def _end_early(self) -> None:
        """Stop a run whose agent still imports torch: no user's code runs yet, and nobody needs to wait for the import."""
        with self._io.condition:
            if self._is_elastic:
                return
        assert self._io.stop is not None
        threading.Thread(target=self._leave, args=[p.Outcome.STOPPED, self._io.stop.reason, 0], daemon=True).start()

    def _leave(self, outcome: p.Outcome, reason: str, swept: int) -> None:
        swept += self._end_everything()
        if self._hub is not None:
            self._hub.close()
        self._io.record(p.RunEnded(at=time.time(), outcome=outcome, reason=reason, swept=swept))
        self._io.close()
        sys.stderr.flush()
        os._exit(0)

    def _end_everything(self) -> int:
        """End ranks that were still getting ready, and whatever else is left. Returns how many processes were swept."""
        io = self._io
        with io.condition:
            io.is_ending = io.is_closing = True
            left = list(io.ranks)
        for rank in left:
            processes.kill_group(rank)
        with io.condition:
            io.condition.wait_for(lambda: all(rank.has_exited for rank in left), processes.KILL_WAIT_S)
        swept = processes.sweep(self._plan.marker, with_children=True)
        io.forget(left)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._plan.payload)
        return swept

    def _on_signal(self, number: int, _frame: object) -> None:
        # A handler must not take the lock that the interrupted code may hold: a thread does.
        request = StopRequest(f"the agent got {signal.Signals(number).name}")
        threading.Thread(target=self._io.request_stop, args=[request], daemon=True).start()


def _in_words(error: Exception, plan: p.Plan) -> str:
    """Say why a run could not be done when the reason is no rank's."""
    if isinstance(error, NodeError):
        return str(error)
    if isinstance(error, OSError) and plan.master_port:
        return f"the port {plan.master_port} on {plan.master_addr} cannot be used: {error.strerror or error}"
    return f"the agent failed: {error}" if isinstance(error, RuntimeError) else f"the agent failed: {type(error).__name__}: {error}"
