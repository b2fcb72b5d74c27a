"""Ranks and an agent that play: a rank's messages come from a thread of the test, and its process is a shell that ends as it is told.

The agent's own code runs here, torch's elastic agent with it: how ranks are placed, judged, restarted, stopped and replaced is tried within
milliseconds. Real launches (`tests/launch`) show that real ranks say and do the same.

    with played(plan(2), work) as run:
        run.finish()
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from support import HANG_S, wait_until

from ice_notebook.agent import elastic
from ice_notebook.agent.io import AgentIO
from ice_notebook.agent.ranks import RankProcess
from ice_notebook.host import processes
from ice_notebook.wire import control as c
from ice_notebook.wire import protocol as p
from ice_notebook.wire.messages import Message, MessageChannel

# Ends with the code that it reads. What it ignores, a real rank has a handler for; what it does not ignore ends it.
_BODY = "trap '' {ignored}; read code && exit $code"


class PlayedRank:
    """One rank: `work` is played in a thread of its own when the rank may begin."""

    def __init__(self, serial: int, marker: str, work: Callable[[PlayedRank], None], *, ignores: str, deaf: bool) -> None:
        """`ignores` names the signals that do not end its process; a deaf one hears nothing of its place."""
        self.serial = serial
        self._work = work
        self._is_deaf = deaf
        self.was_asked = threading.Event()  # to stop
        self.go: p.Go | None = None
        self.heard: list[Message] = []
        ours, theirs = socket.socketpair()
        asking, self._asked = socket.socketpair()
        asking.setblocking(False)
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reader, False)
        self._channel: MessageChannel[Any] = MessageChannel(theirs, c.ToRank)
        self._body = subprocess.Popen(
            ["/bin/sh", "-c", _BODY.format(ignored=ignores)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={processes.MARKER: marker},
            start_new_session=True,
        )
        self.seen_by_agent = RankProcess(self._body, MessageChannel(ours, c.FromRank), [(reader, p.Std.ALL)], asking, marker)
        threading.Thread(target=self._hear, daemon=True).start()

    @property
    def pid(self) -> int:
        """Return the number of its process."""
        return self._body.pid

    @property
    def place(self) -> tuple[int, int]:
        """Return its attempt and its rank."""
        assert self.go is not None
        return self.go.attempt, self.go.rank

    # ---- what it does

    def says(self, *messages: Message) -> None:
        """Tell the agent."""
        with contextlib.suppress(OSError):  # the process was ended, and the agent has closed its end
            for message in messages:
                self._channel.send(message)

    def prints(self, text: str) -> None:
        """Write to its output."""
        os.write(self._writer, text.encode())

    def returns(self, text: str = "1") -> None:
        """Return a value from its function, and end well."""
        self.gives(text)
        self.exits(0)

    def gives(self, text: str = "1") -> None:
        """Write a value, as a script may do before its end."""
        assert self.go is not None
        Path(self.go.results[0]).write_bytes(text.encode())
        self.says(c.Loaded(), c.Returned(value=p.Value(path=self.go.results[0], size_bytes=len(text), type_name="int", text=text)))

    def fails(self, headline: str = "ValueError: bad loss", *, exit_code: int | None = 1, **more: Any) -> None:
        """Raise, and end by it; without an exit code it has not ended yet."""
        self.says(c.Failed(failure=p.Failure(kind="raised", headline=headline, at=time.time(), **more)))
        if exit_code is not None:
            self.exits(exit_code)

    def waits(self) -> None:
        """Do what takes long, and unwind when asked to stop."""
        self.was_asked.wait()
        self.unwinds()

    def unwinds(self) -> None:
        """Answer the interrupt, and end."""
        self._asked.send(b"!")
        self.says(c.Unwound())
        self.exits(130)

    def exits(self, code: int) -> None:
        """End its process."""
        assert self._body.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was ended before
            self._body.stdin.write(f"{code}\n".encode())
            self._body.stdin.close()

    def dies(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End by a signal of somebody else's."""
        os.kill(self.pid, number)

    def hangs_up(self) -> None:
        """Close its connection, and live on."""
        self._channel.close()

    # ---- what it hears

    def _hear(self) -> None:
        self.says(c.Tied(), _READY)
        with contextlib.suppress(EOFError, OSError):
            while True:
                message = self._channel.receive()
                self.heard.append(message)
                if isinstance(message, c.Preload):
                    self.says(_READY)
                elif isinstance(message, c.Place) and not self._is_deaf:
                    self.go = message.go
                    self.says(c.Accepted())
                elif isinstance(message, c.Begin):
                    threading.Thread(target=self._work, args=[self], daemon=True).start()
                elif isinstance(message, c.Unwind):
                    self.was_asked.set()

    def close(self) -> None:
        """Leave nothing of it."""
        if self._body.poll() is None and not self.seen_by_agent.has_exited:
            self._body.kill()
        self._body.wait()
        if self._body.stdin is not None and not self._body.stdin.closed:
            self._body.stdin.close()
        self._channel.close()
        self._asked.close()
        os.close(self._writer)


_READY = c.Ready(readiness=p.Readiness(import_s=0.0, environment=()))


class PlayedRun:
    """A run by the agent's own code over played ranks, and what its kernel hears."""

    def __init__(self, plan: p.Plan, io: AgentIO, kernel: MessageChannel[Any]) -> None:
        self.plan = plan
        self.io = io
        self.ranks: list[PlayedRank] = []
        self.heard: list[Message] = []
        self.outcome: tuple[p.Outcome, str] | None = None
        self._kernel = kernel
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._listen, self._do)]

    def start(self, *, stands_by: bool) -> None:
        """Begin."""
        self.io.start()
        if stands_by:
            self.io.start_ranks(self.plan.world_size)
            with self.io.condition:
                self.io.condition.wait_for(lambda: self.io.state.are_ready, HANG_S)
                self.io.state.stand_by()
        self.io.begin(self.plan)
        elastic.start_clock(self.plan, self.io)
        for thread in self._threads:
            thread.start()

    @property
    def events(self) -> list[Any]:
        """Return what has happened so far."""
        return [message.event for message in self.heard if isinstance(message, c.Happened)]

    def seen(self, *kinds: type) -> list[Any]:
        """Return the events of some kinds."""
        return [event for event in self.events if isinstance(event, kinds)]

    def tell(self, message: Message) -> None:
        """Say something to the agent, as its kernel does."""
        self._kernel.send(message)

    def finish(self) -> p.Outcome:
        """Wait for the end of the run, and return how it ended."""
        wait_until(lambda: self.outcome is not None)
        assert self.outcome is not None
        self.io.outbox.drain(HANG_S)
        n_events = len((Path(self.plan.folder) / "events.jsonl").read_bytes().splitlines())
        wait_until(lambda: len(self.events) == n_events)
        return self.outcome[0]

    def _do(self) -> None:
        outcome, reason, _ = elastic.run_elastic(self.plan, self.io)
        self.outcome = outcome, reason

    def _listen(self) -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                self.heard.append(self._kernel.receive())

    def close(self) -> None:
        """End it, whatever it does."""
        self.io.request_stop(elastic.StopRequest(p.StopReason.KILL, by=None, grace_s=0.0))
        self._threads[1].join(HANG_S)
        assert not self._threads[1].is_alive(), "the agent does not end"
        self.io.close()
        self._kernel.close()
        for rank in self.ranks:
            rank.close()


@contextlib.contextmanager
def played(
    plan: p.Plan,
    work: Callable[[PlayedRank], None],
    *,
    ignores: str = "INT",
    deaf: Callable[[int], bool] = lambda _: False,
    stands_by: bool = False,
) -> Iterator[PlayedRun]:
    """Begin a run whose ranks all play `work`.

    `deaf` says of which ranks, by the number of their start, nothing is heard. With `stands_by` all are up before there is a run.
    """
    ours, theirs = socket.socketpair()
    io = AgentIO(plan.preparation(), MessageChannel(ours, c.ToAgent))
    run = PlayedRun(plan, io, MessageChannel(theirs, c.FromAgent))

    def start_rank(preparation: p.Preparation, serial: int, _server: object) -> RankProcess:
        rank = PlayedRank(serial, f"{preparation.marker}:{serial}", work, ignores=ignores, deaf=deaf(serial))
        run.ranks.append(rank)
        return rank.seen_by_agent

    with mock.patch("ice_notebook.agent.starter.start_rank", start_rank):
        try:
            run.start(stands_by=stands_by)
            yield run
        finally:
            run.close()
