"""The fork server: it lives with the kernel, imports torch once, and forks an agent for each run or set of standby ranks.

It has one thread, the main one: what it forks is whole. It never touches a GPU.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from ice_notebook.agent import main as agent
from ice_notebook.agent.ranks import MODULES
from ice_notebook.host import forks, lifelines, signals, starting, title
from ice_notebook.rank import preloading
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import (
    Exited,
    ForkAgent,
    Forked,
    ForkSuccessor,
    Preload,
    Prepare,
    Quit,
    ServerReady,
    ToAgent,
    ToServer,
)
from ice_notebook.wire.messages import Handlers, MessageChannel


def main(words: list[str], _own_path: list[str]) -> None:
    """Be the fork server. Never returns."""
    signals.reset()
    title.show(title.command_of("server"))
    marker = forks.Marker()
    kernel: MessageChannel[Any] = MessageChannel(socket.socket(fileno=int(words[0])), ToServer)
    os.set_inheritable(kernel.fileno(), False)
    try:
        owner = lifelines.take_hold(signal.SIGKILL)
        kernel.receive()  # its preparation: each fork gets one of its own
        readiness = preloading.get_ready(("ice_notebook.agent.elastic", *MODULES))
        Server(kernel, marker, readiness, owner).serve()
    except (EOFError, OSError):
        os._exit(0)  # the kernel is gone


class Server:
    """See the module."""

    def __init__(self, kernel: MessageChannel[Any], marker: forks.Marker, readiness: p.Readiness, owner: int | None) -> None:
        self._kernel = kernel
        self._marker = marker
        self._readiness = readiness
        self._owner = owner  # the kernel's lifeline
        self._selector = selectors.DefaultSelector()
        self._from_kernel = Handlers(
            {
                Preload: self._on_preload,
                ForkAgent: lambda asked: self._start(asked, self._be_agent),
                ForkSuccessor: lambda asked: self._start(asked, self._be_successor),
                Quit: lambda _: os._exit(0),
            }
        )

    def serve(self) -> NoReturn:
        """Fork when asked to, and tell of the end of what was forked, until the kernel is gone."""
        self._get_ready()
        self._selector.register(self._kernel, selectors.EVENT_READ, self._on_kernel)
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _get_ready(self) -> None:
        self._refusal = forks.refusal()
        self._kernel.send(ServerReady(readiness=self._readiness, refusal=self._refusal))

    def _on_kernel(self) -> None:
        self._from_kernel.take(self._kernel.receive())

    def _on_preload(self, message: Preload) -> None:
        self._readiness = p.Readiness.of([self._readiness, preloading.load(message.modules)])
        self._get_ready()

    def _start(self, asked: ForkAgent | ForkSuccessor, be: Callable[[socket.socket], NoReturn]) -> None:
        sock, log = self._kernel.receive_descriptors(2)
        pid = self._exec(asked.preparation, sock, log) if self._refusal else self._fork(sock, log, be)
        os.close(sock)
        os.close(log)
        pidfd = os.pidfd_open(pid)
        self._selector.register(pidfd, selectors.EVENT_READ, partial(self._on_exit, pidfd, pid, asked.ticket))
        self._kernel.send(Forked(ticket=asked.ticket))
        self._kernel.send_descriptors([pidfd])  # by which the kernel knows it, whoever gets its number later

    def _fork(self, sock: int, log: int, be: Callable[[socket.socket], NoReturn]) -> int:
        pid = os.fork()
        if pid == 0:
            try:
                self._selector.close()
                self._kernel.drop()
                os.setsid()
                for fd in (1, 2):
                    os.dup2(log, fd)
                os.close(log)
                be(socket.socket(fileno=sock))
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)  # nothing that goes wrong in an agent may make a second server of it
        return pid

    def _be_agent(self, kernel: socket.socket) -> NoReturn:
        lifelines.take_hold(signal.SIGCONT, self._owner)
        agent.serve(MessageChannel(kernel, ToAgent), self._readiness, self._marker)

    def _be_successor(self, sock: socket.socket) -> NoReturn:
        """Be a fork server that is to import more: this one forks on, whatever those imports do."""
        lifelines.take_hold(signal.SIGKILL, self._owner)
        kernel: MessageChannel[Any] = MessageChannel(sock, ToServer)
        preparation = kernel.receive_a(Prepare).preparation
        self._marker.change(f"{preparation.marker}:{starting.SERVER_NAME}")
        Server(kernel, self._marker, self._readiness, self._owner).serve()

    def _exec(self, preparation: p.Preparation, sock: int, log: int) -> int:
        """Start an agent afresh, which is safe whatever runs here, and have it say why."""
        note = f"fork server not used: {self._refusal}"
        started = starting.start_process(
            preparation.command("agent.main", sock, note),
            sock,
            log,
            environment=preparation.environment,
            marker=f"{preparation.marker}:agent",
            owner=self._owner,
        )
        return started.pid

    def _on_exit(self, pidfd: int, pid: int, ticket: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        self._kernel.send(Exited(ticket=ticket, code=os.waitstatus_to_exitcode(status)))
