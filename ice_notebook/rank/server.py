"""The rank server: a child that an agent forks before it starts a thread, and that forks ranks for it.

A rank is forked twice, so that the agent, which adopts what is left behind, is its parent: it gets the exit code, and the rank dies with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec

from ice_notebook.host import forks, title
from ice_notebook.rank import guards
from ice_notebook.rank import main as rank
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import ForkRank, FromRankServer, RankForked, RankNotForked, ToRankServer
from ice_notebook.wire.messages import MessageChannel

FORK_WAIT_S = 5.0  # it forks within 20 ms; after so long it is stopped
_DESCRIPTORS = 5


class RankServer:
    """The agent's end."""

    def __init__(self, readiness: p.Readiness, marker: forks.Marker, name: str) -> None:
        """Fork it. Nobody but the main thread may be there yet."""
        ours, theirs = socket.socketpair()
        agent_pid = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                ours.close()
                guards.die_with_agent(agent_pid)
                marker.change(name)
                title.show(title.command_of("server"))
                _Forks(MessageChannel(theirs, ToRankServer), agent_pid, readiness, marker).serve()
            finally:
                os._exit(1)
        theirs.close()
        self._channel: MessageChannel[Any] = MessageChannel(ours, FromRankServer)

    def fork(self, settings: dict[str, Any], marker: str, descriptors: Sequence[int]) -> int:
        """Return the pid of a new rank, which has got these descriptors: of its sockets, its terminal, and its streams.

        Raises:
            OSError: the server is gone, does not answer, or cannot fork.
        """
        self._channel.send(ForkRank(marker=marker, settings=settings))
        self._channel.send_descriptors(descriptors)
        try:
            answer = self._channel.receive(FORK_WAIT_S)
        except EOFError as error:
            raise OSError("the rank server is gone") from error
        if isinstance(answer, RankNotForked):
            raise OSError(answer.error)
        pid: int = answer.pid
        return pid

    def close(self) -> None:
        """End it. What it was asked for and has not done yet does not come any more."""
        self._channel.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)  # our own child, not reaped yet
        os.waitpid(self.pid, 0)


class _Forks:
    """The server's end."""

    def __init__(self, agent: MessageChannel[Any], agent_pid: int, readiness: p.Readiness, marker: forks.Marker) -> None:
        self._agent = agent
        self._agent_pid = agent_pid
        self._readiness = readiness
        self._marker = marker

    def serve(self) -> NoReturn:
        while True:
            try:
                asked = self._agent.receive()
                descriptors = self._agent.receive_descriptors(_DESCRIPTORS)
            except (EOFError, OSError):
                os._exit(0)
            try:
                pid = self._fork(asked.settings, asked.marker, descriptors)
                self._agent.send(RankForked(pid=pid))
            except OSError as error:
                self._agent.send(RankNotForked(error=str(error)))
            for fd in descriptors:
                os.close(fd)

    def _fork(self, settings: dict[str, Any], marker: str, descriptors: list[int]) -> int:
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            between = os.getpid()
            pid = os.fork()
            if pid:
                os.write(writer, str(pid).encode())
                os._exit(0)
            try:
                for fd in (reader, writer):
                    os.close(fd)
                while os.getppid() == between:  # about to end; nothing announces that the agent has become the parent
                    time.sleep(0.0002)
                self._be_rank(settings, marker, descriptors)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        os.close(writer)
        try:
            os.waitpid(between, 0)
            return int(os.read(reader, 32))
        finally:
            os.close(reader)

    def _be_rank(self, settings: dict[str, Any], marker: str, descriptors: list[int]) -> NoReturn:
        self._agent.drop()
        os.setsid()
        self._marker.change(marker)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
        sock, terminal, asking, out, err = descriptors
        guards.write_to(out, err)
        forks.reseed()
        known = {**settings, "agent_pid": self._agent_pid, "socket": sock, "terminal": terminal, "asking": asking}
        rank.serve(msgspec.convert(known, rank.Settings), [*sys.path], self._readiness)
