"""Where the kernel gets an agent from: a fresh process, in a session of its own."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys

from ice_notebook import processes
from ice_notebook import protocol as p
from ice_notebook.frames import Channel
from ice_notebook.store import RunFolder

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[2]); from ice_notebook.agent.main import main; main()"
_EXIT_WAIT_S = 1.0  # an agent that has closed its socket is dead or on its way out


class AgentProcess:
    """An agent as the kernel sees it: a process and a socket. Whoever has it must `close` it."""

    def __init__(self, plan: p.Plan, folder: RunFolder) -> None:
        ours, theirs = socket.socketpair()
        with open(folder.agent_log, "ab") as log, theirs:
            self._process = subprocess.Popen(
                [plan.interpreter, "-c", _BOOT, str(theirs.fileno()), json.dumps(plan.boot_path)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                # A notebook's interrupt goes to the kernel's whole process group: it must not reach the agent.
                start_new_session=True,
                env={**plan.environment, processes.MARKER: f"{plan.marker}:agent"},
                cwd=folder.path,
            )
        self.channel = Channel(ours)
        self.channel.send("run", p.encode(plan))

    @property
    def pid(self) -> int:
        """Return the agent's process id."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the agent; its ranks die with it, and the sweep sees to what they started."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()

    def close(self) -> int:
        """Wait for the end of an agent whose socket has ended, killing it if it lingers, and return its exit code."""
        if not self._has_ended_within(_EXIT_WAIT_S):
            self.kill()
        self._process.wait()
        self.channel.close()
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
