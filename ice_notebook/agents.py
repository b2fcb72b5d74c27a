"""Where the kernel gets an agent from: a fresh process, in a session of its own, which gets ready before it is told what for."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ice_notebook import processes
from ice_notebook import protocol as p
from ice_notebook.frames import Channel, Frame

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from ice_notebook.agent.main import main; main()"
_EXIT_WAIT_S = 1.0  # an agent that has closed its socket is dead or on its way out
TAKE_WAIT_S = 2.0  # an agent that stands by takes a plan within a millisecond; after so long it is deaf


class AgentProcess:
    """An agent as the kernel sees it: a process and a socket. Whoever has it must `close` it."""

    def __init__(self, preparation: p.Preparation) -> None:
        """Start an agent and its ranks, which begin to get ready."""
        self.preparation = preparation
        ours, theirs = socket.socketpair()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - what it says before it has a run; it moves that to the run's folder
        with theirs:
            self._process = subprocess.Popen(
                [preparation.interpreter, "-c", _BOOT, str(theirs.fileno()), json.dumps(preparation.boot_path)],
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=[theirs.fileno()],
                # A notebook's interrupt goes to the kernel's whole process group: it must not reach the agent.
                start_new_session=True,
                env={**preparation.environment, processes.MARKER: f"{preparation.marker}:agent"},
                cwd="/",
            )
        self.channel = Channel(ours)
        self.channel.send("prepare", p.encode(preparation))

    @property
    def pid(self) -> int:
        """Return the agent's process id."""
        return self._process.pid

    def run(self, plan: p.Plan) -> None:
        """Have it do a run, whenever it is ready. A dead agent is the affair of whoever follows it."""
        with contextlib.suppress(OSError):
            self.channel.send("run", p.encode(plan))

    def take(self, plan: p.Plan) -> bool:
        """Have an agent that stands by do a run, and return whether it is alive enough to have taken it."""
        self.run(plan)
        until = time.monotonic() + TAKE_WAIT_S
        with contextlib.suppress(EOFError, OSError):
            while (frame := self._receive(until)) is not None:
                if frame.kind == "taken":
                    return True
        return False

    def _receive(self, until: float) -> Frame | None:
        ready = select.poll()
        ready.register(self.channel.fileno(), select.POLLIN)
        return self.channel.receive() if ready.poll(max(0.0, until - time.monotonic()) * 1000) else None

    def kill(self) -> None:
        """Kill the agent; its ranks die with it, and the sweep sees to what they started."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def close(self, log: Path | None = None) -> int:
        """Wait for the end of an agent whose socket has ended, killing it if it lingers, and return its exit code.

        `log` gets what it has said if it never came to move that there itself.
        """
        if not self._has_ended_within(_EXIT_WAIT_S):
            self.kill()
        self._process.wait()
        self.channel.close()
        self._log.seek(0)
        if log is not None and (said := self._log.read()):
            with contextlib.suppress(OSError), log.open("ab") as file:
                file.write(said)
        self._log.close()
        return self._process.returncode

    def _has_ended_within(self, timeout_s: float) -> bool:
        """Wait for the process, which `Popen.wait` with a timeout does by looking up to 50 ms late."""
        if self._process.poll() is not None:
            return True
        pidfd = os.pidfd_open(self._process.pid)
        try:
            end = select.poll()
            end.register(pidfd, select.POLLIN)
            return bool(end.poll(timeout_s * 1000))
        finally:
            os.close(pidfd)


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
