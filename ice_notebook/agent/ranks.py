"""A rank as the agent sees it: a process with a socket, a pseudo-terminal, an acknowledge pipe and a pidfd. Runs in the agent's io thread."""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
from dataclasses import dataclass, field
from typing import Any

import msgspec

from ice_notebook import processes
from ice_notebook import protocol as p
from ice_notebook.frames import Channel
from ice_notebook.rank.server import RankServer

# The kernel's own module path comes with `go`.
_BOOT = (
    "import json, sys; own_path = [entry for entry in sys.path if entry]; sys.path[:] = json.loads(sys.argv[2]); "
    "from ice_notebook.rank.main import main; main(sys.argv[1], own_path)"
)
# What a rank needs to work at once when it is told to go; torch first, the rest is quick.
_OURS = ("pickles", "cell", "descriptions", "rank.surroundings", "rank.shell", "rank.spawning", "rank.process_group")
MODULES = ("torch", "torch.distributed", *(f"ice_notebook.{module}" for module in _OURS))
# A script finds itself in a process that has imported next to nothing: torch is imported when the script does it.
_SCRIPT_MODULES = ("ice_notebook.tracebacks", "ice_notebook.rank.script", "ice_notebook.rank.surroundings")
_TERMINAL_ROWS, _TERMINAL_COLUMNS = 24, 80  # a progress bar then fits into a pane of the panel
_READ_BYTES = 1 << 16
_LFLAG, _OFLAG, _CC = 3, 1, 6  # places in what termios.tcgetattr returns


class Stage(enum.Enum):
    """How far a rank's process has come."""

    STARTING = "starting"  # imports torch
    READY = "ready"  # waits for go
    SENT = "sent"  # go is on its way
    ACCEPTED = "accepted"  # from here on its end is the run's affair


@dataclass
class Stream:
    """The agent's end of a terminal that a rank writes to, and the files that take what comes."""

    fd: int
    rank: RankProcess
    files: list[int] = field(default_factory=list)  # descriptors, of the rank's output.log among others
    early: bytearray = field(default_factory=bytearray)  # printed before the rank had a place: kept for its log
    mid_line_since: float | None = None  # when the line began that has not ended yet, on the monotonic clock
    slave: int = -1  # the other end, held until the rank has opened it: without a holder the terminal would read as hung up

    def release(self) -> None:
        """Let the rank's own end be the only one."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def close(self) -> None:
        """Close the terminal and the files; the rank's session is hung up if it is still there."""
        self.release()
        for fd in (self.fd, *self.files):
            os.close(fd)
        self.fd = -1
        self.files = []


class RankProcess:
    """One process. The io thread changes it, under the agent's condition; the elastic thread reads it under the same."""

    def __init__(
        self, process: subprocess.Popen[bytes] | int, channel: Channel, terminal: int, acknowledge: int, marker: str
    ) -> None:
        self._process = process  # or the number of an adopted child
        self.marker = marker  # carried by the process and all that it starts
        self.pid = process if isinstance(process, int) else process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.channel = channel
        self.acknowledge = acknowledge
        self.terminal = Stream(terminal, self)
        self.streams = [self.terminal]
        self.stage = Stage.STARTING
        self.is_tied = False  # it dies with the agent, whatever it does
        self.is_resting = False  # we have stopped it for a while
        self.attempt = self.rank = self.local_rank = -1
        self.has_returned = False  # with a value or without one that could be written
        self.given: p.RankReturned | p.ValueLost | None = None  # by a script: its exit code will say whether it counts
        self.has_loaded = False
        self.readiness: p.Readiness | None = None
        self.is_program = False  # not Python: it cannot be asked to stop, and says nothing but its exit code
        self.is_stopped = False  # it said that it unwound after our interrupt
        self.failure: p.Failure | None = None
        self.has_acknowledged = False
        self.hung_up_at: float | None = None  # when its end of the socket was closed, on the monotonic clock
        self.exit_code: int | None = None

    @property
    def has_exited(self) -> bool:
        """Return whether the process has ended, and all that it printed has been taken."""
        return self.exit_code is not None

    @property
    def has_accepted(self) -> bool:
        """Return whether the user's code runs in it, or has."""
        return self.stage is Stage.ACCEPTED

    @property
    def can_be_asked(self) -> bool:
        """Return whether the user's code runs in it under our interrupt handler."""
        return self.has_accepted and not self.is_program

    @property
    def has_reported(self) -> bool:
        """Return whether nothing more is to be heard of how its work ended."""
        return self.has_exited or self.has_reported_before_exit

    @property
    def has_reported_before_exit(self) -> bool:
        """Return whether the rank itself has said how its work ended."""
        return self.has_returned or self.is_stopped or self.failure is not None

    def rest(self) -> None:
        """Stop the process until it is to go on. One that would not die with the agent goes on: stopped, it would stay for ever."""
        if self.is_tied and not self.is_resting and not self.has_exited:
            self.is_resting = True
            self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Have a process that rests go on."""
        if self.is_resting:
            self.is_resting = False
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(self.pidfd, number)

    def open_stream(self) -> tuple[Stream, str]:
        """Return a second terminal for a teed stream, and the path by which the rank opens it."""
        master, slave = _open_terminal()
        stream = Stream(master, self, slave=slave)
        self.streams.append(stream)
        return stream, os.ttyname(slave)

    def reap(self) -> None:
        """Let the system forget the process; its number may be given to another one from here on."""
        with contextlib.suppress(ChildProcessError):
            if isinstance(self._process, int):
                os.waitpid(self._process, 0)
            else:
                self._process.wait()
        with contextlib.suppress(OSError):
            os.close(self.pidfd)


def start_rank(preparation: p.Preparation, serial: int, server: RankServer | None) -> RankProcess:
    """Start a fresh interpreter, or fork a process, that gets ready to be a rank.

    Called from the io thread only: the parent-death signal that the rank asks for follows the thread that started it.
    """
    ours, theirs = socket.socketpair()
    master, slave = _open_terminal()
    acknowledge, acknowledge_theirs = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    inherited = (theirs.fileno(), slave, acknowledge_theirs)
    settings: dict[str, Any] = {
        "agent_pid": os.getpid(),
        "socket": theirs.fileno(),
        "terminal": slave,
        "acknowledge": acknowledge_theirs,
        "modules": _SCRIPT_MODULES if preparation.is_for_script else MODULES,
        "preload": preparation.preload,
    }
    marker = f"{preparation.marker}:{serial}"
    path = msgspec.json.encode(preparation.boot_path).decode()
    try:
        if server is not None:
            pid = server.fork(settings, marker, inherited)
            return RankProcess(pid, Channel(ours), master, acknowledge, marker)
        process = subprocess.Popen(
            [
                preparation.interpreter,
                # As torchrun: what a script prints is to be seen before its line ends.
                *(["-u"] if preparation.is_for_script else []),
                "-c",
                _BOOT,
                msgspec.json.encode(settings).decode(),
                path,
            ],
            stdin=subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            pass_fds=inherited,
            start_new_session=True,
            env={**preparation.environment, processes.MARKER: marker},
            cwd="/",  # the run's own comes with `go`; until then no folder is held
        )
    finally:
        theirs.close()
        os.close(slave)
        os.close(acknowledge_theirs)
    return RankProcess(process, Channel(ours), master, acknowledge, marker)


def _open_terminal() -> tuple[int, int]:
    """Return the two ends of a pseudo-terminal that passes bytes through as they are and on which nobody waits for a keyboard."""
    master, slave = pty.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[_OFLAG] &= ~termios.OPOST  # no newline is changed on the way
    attributes[_LFLAG] &= ~(termios.ECHO | termios.ICANON)
    # A read finds the end at once: getpass, ssh and whatever else opens /dev/tty must not wait for somebody who is not there.
    attributes[_CC][termios.VMIN] = attributes[_CC][termios.VTIME] = 0
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", _TERMINAL_ROWS, _TERMINAL_COLUMNS, 0, 0))
    for fd in (master, slave):
        os.set_inheritable(fd, False)
    os.set_blocking(master, False)
    return master, slave


def read_terminal(stream: Stream) -> bytes | None:
    """Return what is there to be read, b"" when nothing is, None when the terminal is closed on the other side."""
    try:
        return os.read(stream.fd, _READ_BYTES) or None
    except BlockingIOError:
        return b""
    except OSError:  # EIO: nobody has it open any more
        return None
