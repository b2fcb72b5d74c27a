"""A rank as the agent sees it: a process with a socket, a pseudo-terminal, a socket to ask it by and a pidfd. Runs in the agent's io thread."""

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
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ice_notebook.agent.outbox import Outbox
from ice_notebook.host import boot, processes
from ice_notebook.host.writing import AppendedFile, Loss
from ice_notebook.rank.server import RankServer
from ice_notebook.runs.stream_index import StreamIndexWriter
from ice_notebook.wire import exact_json
from ice_notebook.wire import protocol as p
from ice_notebook.wire.control import Preload, Unwind
from ice_notebook.wire.frames import Channel
from ice_notebook.wire.messages import Message

# What a rank needs to work at once when it is told to go; torch first, the rest is quick.
_OURS = (
    "values.pickles",
    "tasks.cell",
    "values.descriptions",
    "rank.surroundings",
    "rank.shell",
    "rank.spawning",
    "rank.process_group",
)
MODULES = ("torch", "torch.distributed", *(f"ice_notebook.{module}" for module in _OURS))
# A script finds itself in a process that has imported next to nothing: torch is imported when the script does it.
_SCRIPT_MODULES = ("ice_notebook.runs.tracebacks", "ice_notebook.rank.script", "ice_notebook.rank.surroundings")
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
    """The agent's end of a terminal or a pipe that a rank writes to, and the files that take what comes."""

    fd: int
    rank: RankProcess
    std: p.Std = p.Std.ALL  # what the rank writes to it
    files: list[AppendedFile] = field(default_factory=list)  # the rank's output.log first
    early: bytearray = field(default_factory=bytearray)  # printed before the rank had a place: kept for its log
    begun: bytes = b""  # a line that has not ended yet
    begun_at: float = 0.0  # since when it waits for its end, on the monotonic clock
    slave: int = -1  # the other end, held until the rank has opened it: without a holder the terminal would read as hung up

    def release(self) -> None:
        """Let the rank's own end be the only one."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def close(self) -> None:
        """Close the terminal and the files; the rank's session is hung up if it is still there."""
        self.release()
        os.close(self.fd)
        for file in self.files:
            file.close()
        self.fd = -1
        self.files = []


class RankProcess:
    """One process. The io thread changes it, under the agent's condition; the elastic thread reads it under the same."""

    def __init__(
        self,
        process: subprocess.Popen[bytes] | int,
        channel: Channel,
        streams: Sequence[tuple[int, p.Std]],
        asking: socket.socket,
        marker: str,
    ) -> None:
        """`streams` are our ends of what it writes to, its controlling terminal first."""
        self._process = process  # or the number of an adopted child
        self.marker = marker  # carried by the process and all that it starts
        self.pid = process if isinstance(process, int) else process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self.channel = channel
        self._outbox = Outbox(channel)  # it may be busy with anything when something is said to it
        self.asking = asking
        self.streams = [Stream(fd, self, std) for fd, std in streams]
        self.index: StreamIndexWriter | None = None  # says which parts of its log are stderr; None: nobody asks
        self.n_logged = 0  # bytes in its log
        self.stage = Stage.STARTING
        self.is_tied = False  # it dies with the agent, whatever it does
        self.is_preloading = False  # it imports what nobody may need, or is about to
        self.to_preload: tuple[str, ...] = ()  # it has not been asked for these yet
        self.is_resting = False  # we have stopped it for a while
        self.attempt = self.rank = self.local_rank = -1
        self.has_returned = False  # with a value or without one that could be written
        self.given: p.RankReturned | p.ValueLost | None = None  # by a script: its exit code will say whether it counts
        self.has_loaded = False
        self.readiness: p.Readiness | None = None
        self.is_script = False  # its exit code says how it ended
        self.is_program = False  # not Python: it cannot be asked to stop, and says nothing but its exit code
        self.was_asked = False  # by us, to stop
        self.is_stopped = False  # it said that it unwound after our interrupt
        self.failure: p.Failure | None = None
        self.has_acknowledged = False
        self.loss = Loss()  # of its output, for which its log files had no room
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
    def has_succeeded(self) -> bool:
        """Return whether it is over and has done what it was started for: a function has returned, a script has left with exit code 0."""
        return self.has_exited and self.failure is None and (self.has_returned or (self.is_script and self.exit_code == 0))

    def handles(self, number: int) -> bool:
        """Return whether it has a handler of its own for a signal."""
        return self.has_accepted and number in processes.caught_signals(self.pid)

    def tell(self, message: Message | bytes) -> None:
        """Say something to it, without waiting until it hears it. One that is dead is seen at once by its pidfd."""
        self._outbox.post(message)

    def ask(self) -> None:
        """Have the interrupt that follows taken for ours. One that comes without this question is somebody else's, and a failure."""
        self.was_asked = True
        with contextlib.suppress(OSError):  # it has just ended
            self.asking.send(b"?")
        self.tell(Unwind())

    @property
    def has_reported(self) -> bool:
        """Return whether nothing more is to be heard of how its work ended."""
        return self.has_exited or self.has_reported_before_exit

    @property
    def has_reported_before_exit(self) -> bool:
        """Return whether the rank itself has said how its work ended."""
        return self.has_returned or self.is_stopped or self.failure is not None

    def preload(self) -> None:
        """Ask it to import what it is to, if it has not been asked yet."""
        modules, self.to_preload = self.to_preload, ()
        if modules:
            self.tell(Preload(modules=modules))

    def rest(self) -> None:
        """Stop the process until it is to go on. One that would not die with the agent goes on: stopped, it would stay for ever."""
        if self.is_tied and not self.to_preload and not self.is_resting and not self.has_exited:
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

    @property
    def early(self) -> bytes:
        """Return what it has printed before it had a place."""
        return b"".join(bytes(stream.early) for stream in self.streams)

    def open_stream(self, std: p.Std, wiring: p.Wiring) -> tuple[Stream, str]:
        """Return a second terminal for a teed stream, and the path by which the rank opens it."""
        master, slave = _open_terminal(wiring)
        stream = Stream(master, self, std, slave=slave)
        self.streams.append(stream)
        return stream, os.ttyname(slave)

    def resize(self, wiring: p.Wiring) -> None:
        """Give its terminals another size, of which the system tells the programs that use them."""
        for stream in self.streams:
            with contextlib.suppress(OSError):  # a pipe has none
                _set_size(stream.fd, wiring)

    def reap(self) -> None:
        """Let the system forget the process; its number may be given to another one from here on."""
        if self.index is not None:
            self.index.close()
            self.index = None
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
    marker = f"{preparation.marker}:{serial}"
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        channel, its_channel = _pair(ours, theirs)
        asking, its_asking = _pair(ours, theirs)
        asking.setblocking(False)
        wires = _Wires(preparation.wiring, ours, theirs)
        inherited = (its_channel.fileno(), wires.terminal, its_asking.fileno())
        settings: dict[str, Any] = {
            "agent_pid": os.getpid(),
            "socket": its_channel.fileno(),
            "terminal": wires.terminal,
            "asking": its_asking.fileno(),
            "modules": _SCRIPT_MODULES if preparation.is_for_script else MODULES,
        }
        if server is not None:
            process: subprocess.Popen[bytes] | int = server.fork(settings, marker, (*inherited, wires.stdout, wires.stderr))
        else:
            process = _exec(preparation, settings, marker, inherited, wires)
        rank = RankProcess(process, Channel(channel), wires.ours, asking, marker)
        ours.pop_all()
        return rank


def _pair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Return two ends of a connection, which these close: theirs in any case, ours if the rank does not come about."""
    one, other = socket.socketpair()
    ours.callback(one.close)
    theirs.callback(other.close)
    return one, other


def _exec(
    preparation: p.Preparation, settings: dict[str, Any], marker: str, inherited: tuple[int, ...], wires: _Wires
) -> subprocess.Popen[bytes]:
    words = [exact_json.encode(settings).decode()]
    command = boot.command(preparation.interpreter, "rank.main", preparation.boot_path, preparation.pins, words)
    return subprocess.Popen(
        # As torchrun: what a script prints is to be seen before its line ends.
        [command[0], *(["-u"] if preparation.is_for_script else []), *command[1:]],
        stdin=subprocess.DEVNULL,
        stdout=wires.stdout,
        stderr=wires.stderr,
        pass_fds=inherited,
        start_new_session=True,
        env={**preparation.environment, processes.MARKER: marker},
        cwd="/",  # the run's own comes with `go`; until then no folder is held
    )


class _Wires:
    """Both ends of what a rank writes to: its controlling terminal, which ties it to us, and what its streams are besides.

    `ours` and `theirs` close them: theirs in any case, ours if the rank does not come about.
    """

    def __init__(self, wiring: p.Wiring, ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> None:
        self.ours: list[tuple[int, p.Std]] = []
        self._closing = ours, theirs
        out, err = (p.Std.OUT, p.Std.ERR) if wiring.is_apart else (p.Std.ALL, p.Std.ALL)
        # What a program writes to its terminal itself is shown where the terminal is.
        self.terminal = self._add(*_open_terminal(wiring), err if wiring.stdout_is_pipe and not wiring.stderr_is_pipe else out)
        self.stdout = self._add(*_open_pipe(), out) if wiring.stdout_is_pipe else self.terminal
        if not wiring.is_apart:
            self.stderr = self.stdout
        elif wiring.stderr_is_pipe:
            self.stderr = self._add(*_open_pipe(), err)
        else:
            self.stderr = self.terminal if wiring.stdout_is_pipe else self._add(*_open_terminal(wiring), err)

    def _add(self, ours: int, theirs: int, std: p.Std) -> int:
        self.ours.append((ours, std))
        for stack, fd in zip(self._closing, (ours, theirs), strict=True):
            stack.callback(os.close, fd)
        return theirs


def _open_pipe() -> tuple[int, int]:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(reader, False)
    return reader, writer


def _open_terminal(wiring: p.Wiring) -> tuple[int, int]:
    """Return the two ends of a pseudo-terminal that passes bytes through as they are and on which nobody waits for a keyboard."""
    master, slave = pty.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[_OFLAG] &= ~termios.OPOST  # no newline is changed on the way
    attributes[_LFLAG] &= ~(termios.ECHO | termios.ICANON)
    # A read finds the end at once: getpass, ssh and whatever else opens /dev/tty must not wait for somebody who is not there.
    attributes[_CC][termios.VMIN] = attributes[_CC][termios.VTIME] = 0
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    _set_size(slave, wiring)
    for fd in (master, slave):
        os.set_inheritable(fd, False)
    os.set_blocking(master, False)
    return master, slave


def _set_size(fd: int, wiring: p.Wiring) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", wiring.rows, wiring.columns, 0, 0))


def read_terminal(stream: Stream) -> bytes | None:
    """Return what is there to be read, b"" when nothing is, None when the terminal or the pipe is closed on the other side."""
    try:
        return os.read(stream.fd, _READ_BYTES) or None
    except BlockingIOError:
        return b""
    except OSError:  # EIO: nobody has it open any more
        return None
