"""Where the kernel gets an agent from: a process in a session of its own, started afresh or forked, which gets ready before it is told what for."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ice_notebook.host import processes, starting
from ice_notebook.host.suspect_files import last_words
from ice_notebook.wire import control as c
from ice_notebook.wire import protocol as p
from ice_notebook.wire.frames import is_readable_within
from ice_notebook.wire.messages import PART_WAIT_S, Handlers, Message, MessageChannel

_KILLERS = frozenset({signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT})
_DEAD_LOOK_S = 0.001  # nothing announces that a process has no memory any more
_EXIT_WAIT_S = 1.0  # an agent that has closed its socket is dead or on its way out
_NEVER = float("inf")
PRELOAD_S = 30.0  # the longest import of a package that nobody has asked for: it may wait for something that there is only in a run
FORK_WAIT_S = 5.0  # a fork server that is up forks within 20 ms; one that has not after so long is stopped, or hangs
IMPORT_WAIT_S = 120.0  # the same while it imports torch, from a slow disk say
TAKE_WAIT_S = 2.0  # an agent that stands by takes a plan within a millisecond; after so long it is deaf


class AgentProcess:
    """An agent as the kernel sees it: a process and a socket. Whoever has it must `close` it."""

    deadline: float | None = None  # when `revive` is to be called, on the monotonic clock

    def __init__(self, preparation: p.Preparation) -> None:
        """Start an agent and its ranks, which begin to get ready."""
        self.preparation = preparation
        ours, theirs = starting.make_ends()
        self.channel: MessageChannel[Any] = MessageChannel(ours, c.FromAgent)
        self.tell(c.Prepare(preparation=preparation))
        # What it says before it has a run; it moves that to the run's folder. In memory: no disk need have room for it.
        self._log = open(os.memfd_create("ice_notebook agent"), "w+b")  # noqa: SIM115
        with theirs:
            try:
                self._start(theirs.fileno(), self._log.fileno())
            except OSError:
                self.channel.close()
                self._log.close()
                raise

    def _start(self, sock: int, log: int) -> None:
        """Start the process with an end of its socket, and a file for what it says."""
        self._process = _start("agent.main", "agent", self.preparation, sock, log)

    def tell(self, message: Message) -> None:
        """Say something to it. A dead agent is the affair of whoever follows it."""
        with contextlib.suppress(OSError):
            self.channel.send(message)

    def run(self, plan: p.Plan) -> None:
        """Have it do a run, whenever it is ready."""
        self.tell(c.TakeRun(plan=plan))

    def take(self, plan: p.Plan) -> bool:
        """Have an agent that stands by do a run, and return whether it is alive enough to have taken it.

        It does nothing before it has heard that it is the one: what takes the run too late must not have touched it.
        """
        until = time.monotonic() + TAKE_WAIT_S
        with contextlib.suppress(EOFError, OSError):
            self.channel.send(c.Offer(plan=plan))
            while (message := self.channel.receive_until(until)) is not None:
                if isinstance(message, c.Taken):
                    self.channel.send(c.Settled())
                    return True
        return False

    def kill(self) -> None:
        """Kill the agent; its ranks die with it, and the sweep sees to what they started."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def revive(self) -> bool:
        """Start the agent afresh if somebody else was to bring it and has not, and return whether that was so; it has another channel then.

        Due at `deadline`, if there is one, or when the channel has ended.
        """
        return False

    def wait_dead(self) -> None:
        """Wait until an agent that was killed runs no more. The system may still take its memory back, which takes it 20 to 50 ms."""
        _wait_child_dead(self._process)

    def discard(self) -> None:
        """End an agent that nobody follows, and all that it has started."""
        self.kill()
        self.close()
        processes.sweep(self.preparation.marker, looks=3)

    def close(self, log: Path | None = None) -> int | None:
        """Wait for the end of an agent whose socket has ended, killing it if it lingers, and return its exit code where it is known.

        `log` gets what it has said if it never came to move that there itself.
        """
        code = self._wait()
        self.channel.close()
        self._log.seek(0)
        if log is not None and (said := self._log.read()):
            with contextlib.suppress(OSError), log.open("ab") as file:
                file.write(said)
        self._log.close()
        return code

    def _wait(self) -> int | None:
        return _end_child(self._process)


class ForkedAgent(AgentProcess):
    """An agent that the fork server has forked, or is about to: it may still import torch. `revive` does without a server that does not."""

    def __init__(self, preparation: p.Preparation, server: ForkServer) -> None:
        self._server = server
        self._own: subprocess.Popen[bytes] | None = None  # started afresh
        self._plan: p.Plan | None = None  # that it was to do before it was there
        self._is_killed = False
        super().__init__(preparation)

    def _start(self, sock: int, log: int) -> None:
        self._ticket = self._server.fork(self.preparation, sock, log)
        self.deadline = time.monotonic() + (IMPORT_WAIT_S if self._server.readiness is None else FORK_WAIT_S)

    @property
    def _pidfd(self) -> int | None:
        return self._server.pidfd_of(self._ticket)

    @property
    def _is_there(self) -> bool:
        return self._own is not None or self._pidfd is not None

    def revive(self) -> bool:
        """See the base class."""
        self.deadline = None
        if self._is_killed or self._is_there:
            return False
        self._server.close()  # nothing that it was asked for can come any more
        if self._is_there:
            return False
        self.channel.close()  # whatever it has forked in the last moment meets an end there
        ours, theirs = starting.make_ends()
        self.channel = MessageChannel(ours, c.FromAgent)
        with theirs:
            note = "fork server not used: it did not answer"
            self._own = _start("agent.main", "agent", self.preparation, theirs.fileno(), self._log.fileno(), note)
        self.tell(c.Prepare(preparation=self.preparation))
        if self._plan is not None:
            self.tell(c.TakeRun(plan=self._plan))
        return True

    def run(self, plan: p.Plan) -> None:
        """See the base class."""
        self._plan = plan
        super().run(plan)

    def take(self, plan: p.Plan) -> bool:
        """See the base class. One that is not there yet does the run as soon as it is."""
        if self._is_there:
            return super().take(plan)
        self.run(plan)
        return True

    def kill(self) -> None:
        """See the base class. One that is not there yet finds its socket at an end, and ends at once."""
        self._is_killed = True
        if self._own is not None:
            self._own.kill()
        elif (pidfd := self._pidfd) is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        else:
            self.channel.hang_up()

    def wait_dead(self) -> None:
        """See the base class."""
        if self._own is not None:
            _wait_child_dead(self._own)
        elif (pidfd := self._pidfd) is not None:
            _wait_dead(pidfd, processes.pid_of(pidfd))

    def _wait(self) -> int | None:
        if self._own is not None:
            return _end_child(self._own)
        pidfd = self._pidfd
        if pidfd is None:
            return None
        try:
            if not is_readable_within(pidfd, _EXIT_WAIT_S):
                self.kill()
                is_readable_within(pidfd, _EXIT_WAIT_S)
            return self._server.exit_code_of(self._ticket, _EXIT_WAIT_S)
        finally:
            self._server.forget(self._ticket)
            os.close(pidfd)


class ForkServer:
    """The kernel's end of the fork server: a process with torch imported and one thread, which forks agents whenever it is asked.

    One that is to import more is forked from another, its `parent`, which goes on forking meanwhile.
    """

    def __init__(self, preparation: p.Preparation, parent: ForkServer | None = None) -> None:
        self.preparation = preparation
        ours, theirs = starting.make_ends()
        self._channel: MessageChannel[Any] = MessageChannel(ours, c.FromServer)
        self._lock = threading.RLock()
        self._tickets = 0
        self._pidfds: dict[int, int] = {}
        self._exit_codes: dict[int, int] = {}
        self.readiness: p.Readiness | None = None  # None: it imports
        self.imports = Imports(self._channel)
        self.is_gone = False
        self.refusal = ""  # why what it starts is not forked
        self._handlers = Handlers({c.ServerReady: self._on_ready, c.Forked: self._on_forked, c.Exited: self._on_exited})
        with theirs:
            if parent is None:
                process = _start("agent.server", starting.SERVER_NAME, preparation, theirs.fileno(), subprocess.DEVNULL)
                self._process: Started | ForkedServer = Started(process)
            else:
                self._process = ForkedServer(parent, preparation, theirs.fileno(), self._channel)
        self._channel.send(c.Prepare(preparation=preparation))

    def make_successor(self) -> ForkServer:
        """Return a server that was forked from this one, to import more; this one goes on."""
        return ForkServer(p.replace(self.preparation, marker=processes.new_marker()), self)

    @property
    def is_forking(self) -> bool:
        """Return whether it is up, and what it starts is forked."""
        return self.readiness is not None and not self.refusal and not self.is_gone

    def fileno(self) -> int:
        """Return a descriptor that is readable when it has something to say."""
        return self._channel.fileno()

    def fork(self, preparation: p.Preparation, sock: int, log: int, kind: type[c.ForkAgent | c.ForkSuccessor] = c.ForkAgent) -> int:
        """Have it fork an agent with these descriptors, as soon as it can, or another server; return a number for it."""
        with self._lock:
            self._tickets += 1
            with contextlib.suppress(OSError):  # it is gone, and so is the other end of the agent's socket
                self._channel.send(kind(preparation=preparation, ticket=self._tickets))
                self._channel.send_descriptors([sock, log])
            return self._tickets

    def look(self, timeout_s: float = 0.0) -> bool:
        """Take what it has said, waiting for it if asked to; return whether it has said anything."""
        with self._lock:
            if self.is_gone:
                return False
            try:
                message = self._channel.receive_until(time.monotonic() + timeout_s)
                while message is not None:
                    self._handlers.take(message)
                    if (message := self._channel.receive_until(0.0)) is None:
                        return True
            except (EOFError, OSError):  # ended, or stopped in the middle of a word
                self.is_gone = True
            return False

    def pidfd_of(self, ticket: int) -> int | None:
        """Return the pidfd of an agent, None when it is not there yet. Whoever has the agent closes it."""
        self.look()
        return self._pidfds.get(ticket)

    def exit_code_of(self, ticket: int, timeout_s: float) -> int | None:
        """Return the exit code of an agent, None when it has not ended within that time."""
        until = time.monotonic() + timeout_s
        self.look()
        while ticket not in self._exit_codes and not self.is_gone and (left_s := until - time.monotonic()) > 0:
            self.look(left_s)
        return self._exit_codes.get(ticket)

    def retire(self) -> None:
        """Have it end as soon as it has done what it was asked for so far."""
        with contextlib.suppress(OSError):  # it has ended
            self._channel.send(c.Quit())

    def has_ended(self) -> bool:
        """Return whether the process is gone."""
        return self._process.has_ended()

    def close(self) -> None:
        """End it now. What it has forked goes on."""
        with self._lock:
            self._process.end()
            while self.look():  # what it has said before
                pass
            self.is_gone = True
            self._channel.close()

    def forget(self, ticket: int) -> None:
        """Take note that an agent is closed: its pidfd may become somebody else's number."""
        with self._lock:
            self._pidfds.pop(ticket, None)

    def _on_ready(self, message: c.ServerReady) -> None:
        self.readiness = message.readiness
        self.refusal = message.refusal
        self.imports.end()

    def _on_forked(self, message: c.Forked) -> None:
        (self._pidfds[message.ticket],) = self._channel.receive_descriptors(1, PART_WAIT_S)

    def _on_exited(self, message: c.Exited) -> None:
        self._exit_codes[message.ticket] = message.code


class Started:
    """A fork server that was started afresh, as a process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def has_ended(self) -> bool:
        """Return whether it is gone."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Kill it."""
        self._process.kill()
        _end_child(self._process)


class ForkedServer:
    """A fork server that another one forks."""

    def __init__(self, parent: ForkServer, preparation: p.Preparation, sock: int, channel: MessageChannel[Any]) -> None:
        self._parent = parent
        self._channel = channel
        with open(os.devnull, "wb") as log:
            self._ticket = parent.fork(preparation, sock, log.fileno(), c.ForkSuccessor)

    @property
    def _pidfd(self) -> int | None:
        return self._parent.pidfd_of(self._ticket)

    def has_ended(self) -> bool:
        """Return whether it is gone."""
        return (pidfd := self._pidfd) is None or is_readable_within(pidfd, 0.0)

    def end(self) -> None:
        """Kill it. One that is not there yet finds its socket at an end, and ends at once."""
        pidfd = self._pidfd
        if pidfd is None:
            self._channel.hang_up()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        is_readable_within(pidfd, processes.KILL_WAIT_S)
        self._parent.forget(self._ticket)
        os.close(pidfd)


class Imports:
    """What a process of ours that stands by has been asked to import: one package at a time, and for a bounded time."""

    def __init__(self, channel: MessageChannel[Any]) -> None:
        self._channel = channel
        self._asked: set[str] = set()
        self.package = ""  # that is being imported
        self.last = ""  # that has been imported
        self.until = _NEVER  # by when it must be there, on the monotonic clock

    def begin(self, package: str, modules: Iterable[str]) -> None:
        """Ask for the modules of one package."""
        self.package, self.until = package, time.monotonic() + PRELOAD_S
        self._asked.update(modules)
        with contextlib.suppress(OSError):  # gone: the next look sees it
            self._channel.send(c.Preload(modules=tuple(modules)))

    def end(self) -> None:
        """Take note that it has answered."""
        self.last, self.package, self.until = self.package or self.last, "", _NEVER

    @property
    def is_late(self) -> bool:
        """Return whether an import has not come to its end in time."""
        return time.monotonic() >= self.until

    def missing(self, wanted: Iterable[str]) -> tuple[str, list[str]] | None:
        """Return the next package that it has not been asked for, with its modules; None when it has been asked for all."""
        left = [module for module in wanted if module not in self._asked]
        if not left:
            return None
        package = left[0].partition(".")[0]
        return package, [module for module in left if module.partition(".")[0] == package]


def _start(module: str, name: str, preparation: p.Preparation, sock: int, log: int, *words: str) -> subprocess.Popen[bytes]:
    """Start one of our modules as a process, with an end of a socket, a file for what it says, and words for it."""
    return starting.start_process(
        preparation.command(module, sock, *words),
        sock,
        log,
        environment=preparation.environment,
        marker=f"{preparation.marker}:{name}",
    )


def how_it_ended(exit_code: int | None, log: Path) -> str:
    """Say how an agent ended that has not said it itself, with the last line that it wrote to its log."""
    if exit_code is None:
        how = "the agent is gone"
    elif exit_code < 0:
        how = f"the agent ended with signal {-exit_code}"
    else:
        how = f"the agent ended with exit code {exit_code}"
    # Whoever is killed has no last words on that.
    words = "" if exit_code is not None and -exit_code in _KILLERS else last_words(log)
    if exit_code == os.EX_SOFTWARE:
        return f"{how}, by a fault of ice_notebook{f': {words}' if words else ''} (agent.log in the run folder has all of it)"
    return f"{how}: {words} (agent.log)" if words else how


def _end_child(process: subprocess.Popen[bytes]) -> int | None:
    """Wait for the end of a process that is about to end, kill it if it lingers, and return its exit code; None if even that does not help."""
    for wait_s in (_EXIT_WAIT_S, processes.KILL_WAIT_S):
        if process.poll() is not None or has_ended_within(process.pid, wait_s):
            code = process.wait()
            # Where the notebook ignores the end of its children the system forgets them, and Popen says 0.
            return code if code or signal.getsignal(signal.SIGCHLD) is not signal.SIG_IGN else None
        process.kill()
    return None  # it hangs in the system, on a disk that does not answer say


def _wait_child_dead(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None and (pidfd := _open_pidfd(process.pid)) is not None:
        try:
            _wait_dead(pidfd, process.pid)
        finally:
            os.close(pidfd)


def has_ended_within(pid: int, timeout_s: float) -> bool:
    """Wait for the end of a child, which `Popen.wait` with a timeout does by looking up to 50 ms late."""
    pidfd = _open_pidfd(pid)
    if pidfd is None:
        return True
    try:
        return is_readable_within(pidfd, timeout_s)
    finally:
        os.close(pidfd)


def _open_pidfd(pid: int) -> int | None:
    """Return a descriptor of a child; None when it has ended and somebody, or the system where SIGCHLD is ignored, has reaped it."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _wait_dead(pidfd: int, pid: int) -> None:
    until = time.monotonic() + _EXIT_WAIT_S
    while not is_readable_within(pidfd, _DEAD_LOOK_S) and processes.has_memory(pid) and time.monotonic() < until:
        pass
