"""What ranks print: terminals to log files and to the kernel. Runs in the agent's io thread."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable

from ice_notebook.agent.outbox import Outbox
from ice_notebook.agent.ranks import RankProcess, Stream, read_terminal
from ice_notebook.runs.stream_index import STDERR, STDOUT
from ice_notebook.wire import protocol as p

# After a little output the terminals are left alone for a moment: a rank that prints line by line would otherwise cost a wake-up a line.
PAUSE_S = 0.005
_LITTLE_BYTES = 16 << 10
# A terminal gives at most 4 KiB a read: with one read a turn, two ranks that flood would never give more than a little.
_READS_A_TURN = 16
# So long the beginning of a line waits for the rest of it, where a rank has several streams: what it prints elsewhere shall not stand in its middle.
_BEGUN_S = 0.05
_BEGUN_BYTES = 1 << 20
# What a terminal can hold of a process that has ended is less than this; more comes from a child of it that goes on printing.
_LEFT_READS = 64


class Terminals:
    """All terminals of an agent. Readable, as a whole, when one of them is: a selector takes it as it is."""

    def __init__(
        self, condition: threading.Condition, outbox: Outbox, on_loss: Callable[[RankProcess], None] = lambda _: None
    ) -> None:
        """`on_loss` is called whenever output of a rank could not be written to one of its log files."""
        self._condition = condition
        self._outbox = outbox
        self._on_loss = on_loss
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

    @property
    def begun_s(self) -> float | None:
        """Return the seconds until an unfinished line is written, None when there is none."""
        since = [stream.begun_at for stream in self._streams.values() if stream.begun]
        return max(0.0, min(since) + _BEGUN_S - time.monotonic()) if since else None

    def let_go(self) -> None:
        """Take the beginnings of lines that have waited long enough: a bar, or a prompt."""
        now = time.monotonic()
        for stream in self._streams.values():
            if stream.begun and now >= stream.begun_at + _BEGUN_S:
                self._take_begun(stream)

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
            if len(rank.streams) > 1:
                output = self._whole_lines(stream, output)
            if output:
                self._keep(stream, output)

    def _whole_lines(self, stream: Stream, output: bytes) -> bytes:
        """Return what has come of a stream up to the end of a line; the rest waits."""
        if not stream.begun:
            stream.begun_at = time.monotonic()
        whole, newline, begun = (stream.begun + output).rpartition(b"\n")
        if len(begun) > _BEGUN_BYTES:
            whole, begun = whole + newline + begun, b""
            newline = b""
        if newline:
            stream.begun_at = time.monotonic()
        stream.begun = begun
        return whole + newline

    def _take_begun(self, stream: Stream) -> None:
        with self._condition:
            begun, stream.begun = stream.begun, b""
            if begun:
                self._keep(stream, begun)

    def _keep(self, stream: Stream, output: bytes) -> None:
        with self._condition:
            rank = stream.rank
            is_stderr = rank.index is not None and stream.std is p.Std.ERR
            if rank.index is not None:
                rank.index.note(STDERR if is_stderr else STDOUT, rank.n_logged)
            kept, lost = b"", output
            for n, file in enumerate(stream.files):
                taken, left = file.append(output)
                if n == 0:  # output.log, which views read back
                    kept, lost = taken, left
                if left:
                    rank.loss.add(len(left), file.why)
                    self._on_loss(rank)
            rank.n_logged += len(kept)
            if kept:
                self._outbox.post_output(rank.attempt, rank.rank, kept)
            if lost:  # the run goes on, and what is shown live is still shown
                self._outbox.post_output(rank.attempt, rank.rank, lost, is_kept=False, is_stderr=is_stderr)

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
        """Take the rest of lines that a rank has begun in its other streams: it may have written that before what was just read of this one."""
        for other in stream.rank.streams:
            if other is not stream and other.begun and (rest := _read_some(other, _READS_A_TURN)[0]):
                self.take(other, rest)

    def _end(self, stream: Stream) -> None:
        self._take_begun(stream)
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
