"""What ranks print: terminals to log files and to the kernel. Runs in the agent's io thread."""

from __future__ import annotations

import os
import select
import threading
import time

from ice_notebook.agent.outbox import Outbox
from ice_notebook.agent.ranks import RankProcess, Stream, read_terminal

# After a little output the terminals are left alone for a moment: a rank that prints line by line would otherwise cost a wake-up a line.
PAUSE_S = 0.005
_LITTLE_BYTES = 16 << 10
# A terminal gives at most 4 KiB a read: with one read a turn, two ranks that flood would never give more than a little.
_READS_A_TURN = 16
# For the rest of a line that a rank has just begun in another stream: the system passes a terminal's bytes on a little late.
_LINE_WAIT_S = 0.01
# What a terminal can hold of a process that has ended is less than this; more comes from a child of it that goes on printing.
_LEFT_READS = 64


class Terminals:
    """All terminals of an agent. Readable, as a whole, when one of them is: a selector takes it as it is."""

    def __init__(self, condition: threading.Condition, outbox: Outbox) -> None:
        self._condition = condition
        self._outbox = outbox
        self._epoll = select.epoll()
        self._streams: dict[int, Stream] = {}
        self._rest_until = 0.0

    def fileno(self) -> int:
        """Return a descriptor that is readable when a terminal is."""
        return self._epoll.fileno()

    @property
    def rest_s(self) -> float:
        """Return for how many seconds the terminals are better left alone."""
        return self._rest_until - time.monotonic()

    def watch(self, stream: Stream) -> None:
        """Read from a terminal from now on."""
        self._streams[stream.fd] = stream
        self._epoll.register(stream.fd, select.EPOLLIN)

    def read(self) -> None:
        """Take what is there, up to a turn's share of each terminal."""
        taken = 0
        for fd, _ in self._epoll.poll(0):
            if (stream := self._streams.get(fd)) is not None:
                taken += self._read(stream, _READS_A_TURN)
        if taken < _LITTLE_BYTES:
            self._rest_until = time.monotonic() + PAUSE_S

    def take(self, stream: Stream, output: bytes) -> None:
        """Put output where it belongs: into the log files and to the kernel, or aside as long as the process is nobody's rank."""
        with self._condition:
            rank = stream.rank
            if rank.rank < 0:
                stream.early += output
                return
            stream.mid_line_since = None if output.endswith(b"\n") else time.monotonic()
            for fd in stream.files:
                _write(fd, output)
            self._outbox.post_output(rank.attempt, rank.rank, output)

    def end(self, rank: RankProcess) -> None:
        """Take what a rank that has ended has left in its terminals, and close them."""
        for stream in list(rank.streams):
            self._read(stream, _LEFT_READS)
            if stream in rank.streams:
                self._end(stream)

    def _read(self, stream: Stream, reads: int) -> int:
        taken, is_over = _read_some(stream, reads)
        if taken:
            self._finish_lines(stream)
            self.take(stream, taken)
        if is_over:
            self._end(stream)
        return len(taken)

    def _finish_lines(self, stream: Stream) -> None:
        """Take the rest of lines that a rank has begun in its other streams: it has written that before what was just read of this one."""
        for other in stream.rank.streams:
            if other is not stream and other.mid_line_since is not None:
                poller = select.poll()
                poller.register(other.fd, select.POLLIN)
                poller.poll(1000 * max(0.0, other.mid_line_since + _LINE_WAIT_S - time.monotonic()))
                if rest := _read_some(other, _READS_A_TURN)[0]:
                    self.take(other, rest)

    def _end(self, stream: Stream) -> None:
        self._streams.pop(stream.fd, None)
        self._epoll.unregister(stream.fd)
        with self._condition:
            stream.close()
            stream.rank.streams.remove(stream)


def _read_some(stream: Stream, reads: int) -> tuple[bytes, bool]:
    """Return what a terminal has, of so many reads, and whether it is closed on the other side."""
    chunks: list[bytes] = []
    while len(chunks) < reads:
        output = read_terminal(stream)
        if not output:
            return b"".join(chunks), output is None
        chunks.append(output)
    return b"".join(chunks), False


def _write(fd: int, output: bytes) -> None:
    view = memoryview(output)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except OSError:  # the disk is full: the run goes on, and what is shown live is still shown
            return
