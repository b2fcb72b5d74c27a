"""The agent from its first line to its last. It is started with the descriptor of its socket (`boot`)."""

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
from typing import TYPE_CHECKING, Any, NoReturn

from ice_notebook.agent.io import AgentIO
from ice_notebook.agent.meeting import Meeting
from ice_notebook.agent.shares import Shares
from ice_notebook.agent.state import StopRequest
from ice_notebook.errors.nodes import NodeError
from ice_notebook.host import forks, inherited, lifelines, processes, signals, title
from ice_notebook.host.writing import say, write_what_fits
from ice_notebook.rank import surroundings
from ice_notebook.rank.server import RankServer
from ice_notebook.runs.store import RunFolder
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import Prepare, Ready, ToAgent
from ice_notebook.wire.messages import MessageChannel

if TYPE_CHECKING:
    from ice_notebook.agent.hub import Hub

_PR_SET_CHILD_SUBREAPER = 36
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main(words: list[str], _own_path: list[str]) -> None:
    """Be an agent: get ready, take a plan from the kernel, do the run, leave. Never returns."""
    lifelines.take_hold(signal.SIGCONT)  # the io thread sees the kernel's end, unless somebody has stopped this process
    serve(MessageChannel(socket.socket(fileno=int(words[0])), ToAgent), note="".join(words[1:]))


def serve(
    kernel: MessageChannel[Any], readiness: p.Readiness | None = None, marker: forks.Marker | None = None, note: str = ""
) -> NoReturn:
    """Be an agent at the end of this channel. `readiness` and `marker` are those of a fork server that this process was forked from."""
    signals.reset()
    title.show(title.command_of("agent"))
    os.umask(0o077)
    inherited.raise_descriptor_limit()
    os.set_inheritable(kernel.fileno(), False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # interrupts are the kernel's; what follows from them comes as a message
    # Orphans of ranks become children of this process: they can be found, and nothing is left to the system's init.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        preparation = kernel.receive_a(Prepare).preparation
    except EOFError:
        os._exit(0)
    server = None
    if readiness is not None and marker is not None:
        marker.change(f"{preparation.marker}:agent")
        surroundings.take_environment(preparation.environment)
        if preparation.start_method == "forkserver":
            server = RankServer(readiness, marker, f"{preparation.marker}:server")
    Agent(preparation, kernel, server, note).run()


class Agent:
    """A run from the agent's side."""

    def __init__(self, preparation: p.Preparation, kernel: MessageChannel[Any], server: RankServer | None, note: str) -> None:
        self._preparation = preparation
        self._io = AgentIO(preparation, kernel, server, note)
        self._io.on_run = _move_to
        self._io.on_stop = self._end_early
        self._hub: Hub | None = None  # the other nodes, when this agent has started the run
        self._is_elastic = False  # torch's agent is in charge: it ends the ranks

    def run(self) -> NoReturn:
        """Do the run and leave the process."""
        io = self._io
        for number in _STOP_SIGNALS:
            signal.signal(number, self._on_signal)
        io.start_ranks(self._preparation.n_ranks)  # they import torch while this process does
        io.start()
        Shares(io).start()
        outcome, reason, swept = p.Outcome.FAILED, "", 0
        try:
            if self._preparation.is_at_once:
                with io.condition:
                    io.condition.wait_for(lambda: io.state.has_run)
            meeting = self._meet()
            with io.condition:  # its own import is one more, after those of the ranks
                io.condition.wait_for(lambda: io.state.has_run or io.state.are_ready or io.state.at_a_time is None)
            from ice_notebook.agent import elastic  # noqa: PLC0415 - imports torch, in parallel with the ranks

            early = None if io.state.has_run else elastic.get_ready()
            self._stand_by()
            meeting = meeting or self._meet()
            if io.state.folder_error is not None:
                raise io.state.folder_error
            surroundings.take_environment(io.state.plan.environment)  # torch's agent hands some of its own on to ranks
            elastic.start_clock(io.state.plan, io)
            outcome, reason, swept = elastic.run_elastic(io.state.plan, io, meeting, early)
        except Exception as error:
            say(traceback.format_exc())
            with io.condition:
                io.condition.wait_for(lambda: io.state.has_run)  # somebody must be told, if only at the next launch
            reason = _in_words(error, io.state.plan)
        self._leave(outcome, reason, swept)

    def _stand_by(self) -> None:
        """Wait for a run."""
        io = self._io
        with io.condition:
            io.condition.wait_for(lambda: io.state.has_run or io.state.are_ready)
            if not io.state.has_run:
                io.state.stand_by()
                io.outbox.post(Ready(readiness=io.state.readiness()))
            io.condition.wait_for(lambda: io.state.has_run)
            io.condition.wait_for(lambda: io.state.stop is None)  # stopped: `_end_early` is about to end this process
            self._is_elastic = True

    def _meet(self) -> Meeting | None:
        """Return how this agent hears of other nodes, when there may be any. They can join while torch is still being imported."""
        io = self._io
        if not io.state.has_run or io.state.plan.nodes is None:
            return None
        if io.state.plan.nodes.is_first:
            from ice_notebook.agent.hub import Hub  # noqa: PLC0415 - for several nodes only

            hub = Hub(io.state.plan, io.state.folder, io)
            hub.start()
            io.commands.on_message_for_other_node = hub.pass_to_rank
            self._hub = hub
            return hub.meeting
        meeting = Meeting(io.condition, io.outbox.post)
        io.commands.on_coordinator = meeting.take
        return meeting

    def _end_early(self) -> None:
        """Stop a run whose agent still imports torch: no user's code runs yet, and nobody needs to wait for the import."""
        with self._io.condition:
            if self._is_elastic:
                return
        assert self._io.state.stop is not None
        threading.Thread(target=self._leave, args=[p.Outcome.STOPPED, self._io.state.stop.reason.value, 0], daemon=True).start()

    def _leave(self, outcome: p.Outcome, reason: str, swept: int) -> NoReturn:
        swept += self._end_everything()
        if self._hub is not None:
            self._hub.close()
        if self._io.state.has_run:
            self._io.recorder.record(p.RunEnded(at=time.time(), outcome=outcome, reason=reason, swept=swept))
        self._io.close()
        with contextlib.suppress(OSError):  # its disk is full
            sys.stderr.flush()
        os._exit(0)

    def _end_everything(self) -> int:
        """End ranks that were still getting ready, and whatever else is left. Returns how many processes were swept."""
        io = self._io
        left = io.state.close()
        for rank in left:
            processes.kill_group(rank)
        with io.condition:
            io.condition.wait_for(lambda: all(rank.has_exited for rank in left), processes.KILL_WAIT_S)
        swept = processes.sweep(self._preparation.marker, with_children=True)
        io.state.remove_ranks(left)
        if io.state.has_run:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(io.state.plan.payload)
        return swept

    def _on_signal(self, number: int, _frame: object) -> None:
        if not self._io.state.has_run:
            os._exit(0)  # its ranks go with it
        # A handler must not take the lock that the interrupted code may hold: a thread does.
        request = StopRequest(p.StopReason.SIGNAL, signal.Signals(number))
        threading.Thread(target=self._io.request_stop, args=[request], daemon=True).start()


def _in_words(error: Exception, plan: p.Plan) -> str:
    """Say why a run could not be done when the reason is no rank's."""
    if isinstance(error, NodeError):
        return str(error)
    if isinstance(error, OSError) and str(error.filename or "").startswith(plan.folder):
        return f"the run folder cannot be written: {error.strerror or error}"
    if isinstance(error, OSError) and plan.master_port:
        return f"the port {plan.master_port} on {plan.master_addr} cannot be used: {error.strerror or error}"
    if isinstance(error, RuntimeError) and str(error):
        return f"the agent failed: {error}"
    return f"the agent failed: {type(error).__name__}" + (f": {error}" if str(error) else "")


def _move_to(folder: RunFolder) -> None:
    """Live in the run's folder from now on: what this process and its libraries have to say is in its log, with what they have said so far."""
    try:
        os.chdir(folder.path)
        said = os.pread(1, os.fstat(1).st_size, 0)
        log = os.open(folder.agent_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:  # no room, or the folder is gone: the kernel finds what is said where it has been said so far
        say(f"{folder.agent_log} cannot be written: {error}")
        return
    written, _ = write_what_fits(log, said)
    if written == len(said):
        os.ftruncate(1, 0)
    for fd in (1, 2):
        os.dup2(log, fd)
    os.close(log)
