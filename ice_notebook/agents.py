"""Where the kernel gets an agent from: a process in a session of its own, started afresh or forked, which gets ready before it is told what for."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from ice_notebook import processes
from ice_notebook import protocol as p
from ice_notebook.frames import Channel, Frame

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from ice_notebook.agent.{} import main; main()"
_DEAD_LOOK_S = 0.001  # nothing announces that a process has no memory any more
_EXIT_WAIT_S = 1.0  # an agent that has closed its socket is dead or on its way out
_LONGEST_NAME = 32  # of what is forked: it gets its marker written over that of the server
TAKE_WAIT_S = 2.0  # an agent that stands by takes a plan within a millisecond; after so long it is deaf


class AgentProcess:
    """An agent as the kernel sees it: a process and a socket. Whoever has it must `close` it."""

    def __init__(self, preparation: p.Preparation) -> None:
        """Start an agent and its ranks, which begin to get ready."""
        self.preparation = preparation
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self.channel.send("prepare", p.encode(preparation))
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - what it says before it has a run; it moves that to the run's folder
        with theirs:
            try:
                self._start(theirs.fileno(), self._log.fileno())
            except OSError:
                self.channel.close()
                self._log.close()
                raise

    def _start(self, sock: int, log: int) -> None:
        """Start the process with an end of its socket, and a file for what it says."""
        self._process = start_process("main", self.preparation, sock, log, name="agent")

    def run(self, plan: p.Plan) -> None:
        """Have it do a run, whenever it is ready. A dead agent is the affair of whoever follows it."""
        with contextlib.suppress(OSError):
            self.channel.send("run", p.encode(plan))

    def take(self, plan: p.Plan) -> bool:
        """Have an agent that stands by do a run, and return whether it is alive enough to have taken it.

        It does nothing before it has heard that it is the one: what takes the run too late must not have touched it.
        """
        until = time.monotonic() + TAKE_WAIT_S
        with contextlib.suppress(EOFError, OSError):
            self.channel.send("offer", p.encode(plan))
            while (frame := receive_until(self.channel, until)) is not None:
                if frame.kind == "taken":
                    self.channel.send("settled")
                    return True
        return False

    def kill(self) -> None:
        """Kill the agent; its ranks die with it, and the sweep sees to what they started."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def wait_dead(self) -> None:
        """Wait until an agent that was killed runs no more. The system may still take its memory back, which takes it 20 to 50 ms."""
        if self._process.poll() is not None:
            return
        pidfd = os.pidfd_open(self._process.pid)
        try:
            _wait_dead(pidfd, self._process.pid)
        finally:
            os.close(pidfd)

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
        if self._process.poll() is None and not has_ended_within(self._process.pid, _EXIT_WAIT_S):
            self.kill()
        return self._process.wait()


class ForkedAgent(AgentProcess):
    """An agent that the fork server has forked, or is about to: it may still import torch."""

    def __init__(self, preparation: p.Preparation, server: ForkServer) -> None:
        self._server = server
        super().__init__(preparation)

    def _start(self, sock: int, log: int) -> None:
        self._ticket = self._server.fork(self.preparation, sock, log)

    def take(self, plan: p.Plan) -> bool:
        """See the base class. One that is not there yet waits for the server's imports, as a new one would: it cannot be deaf."""
        if self._server.pidfd_of(self._ticket) is not None:
            return super().take(plan)
        self.run(plan)
        return not self._server.is_gone

    def kill(self) -> None:
        """See the base class. One that is not there yet finds its socket closed, and ends at once."""
        pidfd = self._server.pidfd_of(self._ticket)
        if pidfd is None:
            self.channel.close()
            return
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def wait_dead(self) -> None:
        """See the base class."""
        pidfd = self._server.pidfd_of(self._ticket)
        if pidfd is not None:
            _wait_dead(pidfd, processes.pid_of(pidfd))

    def _wait(self) -> int | None:
        pidfd = self._server.pidfd_of(self._ticket)
        if pidfd is None:
            return None
        try:
            if not is_readable_within(pidfd, _EXIT_WAIT_S):
                self.kill()
                is_readable_within(pidfd, _EXIT_WAIT_S)
            return self._server.exit_code_of(self._ticket, _EXIT_WAIT_S)
        finally:
            os.close(pidfd)


class ForkServer:
    """The kernel's end of the fork server: a process with torch imported and one thread, which forks agents whenever it is asked."""

    def __init__(self, preparation: p.Preparation) -> None:
        self.preparation = preparation
        ours, theirs = socket.socketpair()
        self._channel = Channel(ours)
        self._lock = threading.RLock()
        self._tickets = 0
        self._pidfds: dict[int, int] = {}
        self._exit_codes: dict[int, int] = {}
        self._preload = set(preparation.preload)
        self.readiness: p.Readiness | None = None  # None: it imports
        self.is_gone = False
        self.refusal = ""  # why what it starts is not forked
        with theirs:
            name = "fork server".ljust(_LONGEST_NAME, "-")
            self._process = start_process("server", preparation, theirs.fileno(), subprocess.DEVNULL, name=name)
        self._channel.send("prepare", p.encode(preparation))

    @property
    def is_forking(self) -> bool:
        """Return whether it is up, and what it starts is forked."""
        return self.readiness is not None and not self.refusal and not self.is_gone

    def fileno(self) -> int:
        """Return a descriptor that is readable when it has something to say."""
        return self._channel.fileno()

    def fork(self, preparation: p.Preparation, sock: int, log: int) -> int:
        """Have it fork an agent with these descriptors, as soon as it can; return a number for it."""
        with self._lock:
            self._tickets += 1
            with contextlib.suppress(OSError):  # it is gone, and so is the other end of the agent's socket
                self._channel.send("fork", p.encode(preparation), ticket=self._tickets)
                self._channel.send_descriptors([sock, log])
            return self._tickets

    def add_preload(self, modules: Iterable[str]) -> None:
        """Have it import more, for all that it forks from then on."""
        with self._lock:
            if ask_to_import(self._channel, self._preload, modules):
                self.readiness = None

    def look(self, timeout_s: float = 0.0) -> bool:
        """Take what it has said, waiting for it if asked to; return whether it has said anything."""
        with self._lock:
            if self.is_gone:
                return False
            try:
                frame = receive_until(self._channel, time.monotonic() + timeout_s)
                while frame is not None:
                    self._take(frame)
                    if (frame := receive_until(self._channel, 0.0)) is None:
                        return True
            except (EOFError, OSError):
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
            self._channel.send("quit")

    def has_ended(self) -> bool:
        """Return whether the process is gone."""
        return self._process.poll() is not None

    def close(self) -> None:
        """End it now. What it has forked goes on."""
        with self._lock:
            self.look()
            self.is_gone = True
            self._channel.close()
        self._process.kill()
        self._process.wait()

    def _take(self, frame: Frame) -> None:
        if frame.kind == "ready":
            self.readiness = p.decode(frame.body, p.Readiness)
            self.refusal = frame.fields["refusal"]
        elif frame.kind == "forked":
            (self._pidfds[frame.fields["ticket"]],) = self._channel.receive_descriptors(1)
        elif frame.kind == "exited":
            self._exit_codes[frame.fields["ticket"]] = frame.fields["code"]


def start_process(
    module: str, preparation: p.Preparation, sock: int, log: int, *, name: str, more: tuple[str, ...] = ()
) -> subprocess.Popen[bytes]:
    """Start a process of ours with an end of a socket: `main` is an agent, `server` the fork server."""
    return subprocess.Popen(
        [preparation.interpreter, "-c", _BOOT.format(module), str(sock), json.dumps(preparation.boot_path), *more],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        pass_fds=[sock],
        # A notebook's interrupt goes to the kernel's whole process group: it must not reach the agent.
        start_new_session=True,
        env={**preparation.environment, processes.MARKER: f"{preparation.marker}:{name}"},
        cwd="/",
    )


def ask_to_import(channel: Channel, asked: set[str], modules: Iterable[str]) -> bool:
    """Have a process of ours import what it has not been asked for before, and return whether that is anything."""
    added = [module for module in modules if module not in asked]
    asked.update(added)
    if added:
        with contextlib.suppress(OSError):  # gone: the next look sees it
            channel.send("preload", modules=added)
    return bool(added)


def receive_until(channel: Channel, until: float) -> Frame | None:
    """Return the next frame, None when it does not begin to come in time."""
    return channel.receive() if is_readable_within(channel.fileno(), until - time.monotonic()) else None


def has_ended_within(pid: int, timeout_s: float) -> bool:
    """Wait for the end of a child, which `Popen.wait` with a timeout does by looking up to 50 ms late."""
    pidfd = os.pidfd_open(pid)
    try:
        return is_readable_within(pidfd, timeout_s)
    finally:
        os.close(pidfd)


def _wait_dead(pidfd: int, pid: int) -> None:
    until = time.monotonic() + _EXIT_WAIT_S
    while not is_readable_within(pidfd, _DEAD_LOOK_S) and processes.has_memory(pid) and time.monotonic() < until:
        pass


def is_readable_within(descriptor: int, timeout_s: float) -> bool:
    """Wait until a descriptor has something to be read, or its other end is closed; False when that does not come in time."""
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    return bool(ready.poll(max(0.0, timeout_s) * 1000))


def interpreter() -> str:
    """Return the interpreter that agent and ranks are started with: the kernel's own."""
    return sys.executable or ""


def current_umask() -> int:
    """Return the umask of this process. It can only be read by setting it."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("Umask:")).split()[1], 8)
    umask = os.umask(0o077)
    os.umask(umask)
    return umask
