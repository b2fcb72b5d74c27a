"""Messages that are sent without waiting for the other side. Output is bounded; nothing else is dropped."""

from __future__ import annotations

import collections
import threading

from msgspec.structs import replace

from ice_notebook.wire.control import Output, Progress
from ice_notebook.wire.frames import Channel
from ice_notebook.wire.messages import Message, pack_message

# Beyond this the kernel is told only how much it missed: the log files have it all, and what comes is new.
OUTPUT_LIMIT_BYTES = 512 << 10
_COALESCED_BYTES = 1 << 20


class _Queued:
    """A message that waits. What comes later may still be added to it, or take its place."""

    def __init__(self, message: Message | bytes) -> None:
        self.message = message  # bytes: packed already
        self.more = bytearray()  # output that goes on where the message ends
        self.is_gone = False  # it is on its way, and must not change any more

    @property
    def n_output(self) -> int:
        """Return how many bytes of output it holds."""
        return len(self.message.body) + len(self.more) if isinstance(self.message, Output) else 0

    def goes_on(self, output: Output) -> bool:
        """Return whether output goes on where this message has ended."""
        last = self.message
        return (
            isinstance(last, Output)
            and _kind_of(last) == _kind_of(output)
            and not output.missed
            and self.n_output < _COALESCED_BYTES
        )

    def pack(self) -> bytes:
        """Return the message as it travels."""
        message = self.message
        if isinstance(message, bytes):
            return message
        if isinstance(message, Output) and self.more:
            message = replace(message, body=message.body + self.more)
        return pack_message(message)


def _kind_of(output: Output) -> tuple[int, int, bool, bool]:
    return output.attempt, output.rank, output.is_kept, output.is_stderr


class Outbox(threading.Thread):
    """Sends messages in order: at once as long as the socket takes them, the rest in a thread, which alone may wait.

    Were each message the thread's, a launch would wait up to a millisecond for the interpreter's lock with each. The thread starts when
    the socket does not take something for the first time.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(name="ice-outbox", daemon=True)
        self._channel = channel
        self._queue: collections.deque[_Queued] = collections.deque()
        self._changed = threading.Condition()
        self._rest = b""  # of the message that the socket has not taken whole
        self._rest_output_bytes = 0  # that it holds of output
        self._output_bytes = 0
        self._missed: dict[tuple[int, int], int] = {}
        self._progress: dict[tuple[int, int], _Queued] = {}  # the last that was queued of each rank
        self._is_gone = False

    def post(self, message: Message | bytes) -> None:
        """Queue a message, packed or not, that must arrive."""
        with self._changed:
            self._queue.append(_Queued(message))
            self._send()

    def post_later(self, message: Message) -> None:
        """Queue a message that goes with the next one, which is about to come: the kernel has better to do than to wake up for it alone."""
        with self._changed:
            self._queue.append(_Queued(message))

    def post_output(self, attempt: int, rank: int, output: bytes, *, is_kept: bool = True, is_stderr: bool = False) -> None:
        """Queue output of a rank; what does not fit is counted and the count sent later.

        Output that is not kept in the log file is not counted then: nobody could find it there. Of what is kept, the file says whether it is
        stderr's.
        """
        source = attempt, rank
        with self._changed:
            if self._output_bytes > OUTPUT_LIMIT_BYTES:
                self._missed[source] = self._missed.get(source, 0) + len(output) * is_kept
                return
            self._output_bytes += len(output)
            missed = self._missed.pop(source, 0)
            message = Output(
                attempt=attempt, rank=rank, missed=missed, is_kept=is_kept, is_stderr=is_stderr and not is_kept, body=output
            )
            if self._queue and self._queue[-1].goes_on(message):
                self._queue[-1].more += output
                return
            self._queue.append(_Queued(message))
            self._send()

    def post_progress(self, progress: Progress) -> None:
        """Queue how far a rank is; what is still queued of it is replaced."""
        source = progress.attempt, progress.rank
        with self._changed:
            last = self._progress.get(source)
            if last is not None and not last.is_gone:
                last.message = progress
                return
            self._progress[source] = _Queued(progress)
            self._queue.append(self._progress[source])
            self._send()

    def drain(self, timeout_s: float) -> None:
        """Wait until all is sent, the other side is gone, or the time is over."""
        with self._changed:
            for (attempt, rank), missed in self._missed.items():
                self._queue.append(_Queued(Output(attempt=attempt, rank=rank, missed=missed)))
            self._missed.clear()
            self._send()
            self._changed.wait_for(lambda: self._is_gone or not (self._queue or self._rest), timeout_s)

    def run(self) -> None:
        """Send what the socket does not take at once, until the other side is gone."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._rest or self._is_gone)
                rest = self._rest
            if self._is_gone:
                return
            try:
                self._channel.send_packed(rest)
            except OSError:
                with self._changed:
                    self._lose()
                return
            with self._changed:
                self._output_bytes -= self._rest_output_bytes
                self._rest, self._rest_output_bytes = b"", 0
                self._send()
                self._changed.notify_all()

    def _send(self) -> None:
        """Send what is queued, as far as the socket takes it, and leave the rest to the thread."""
        if self._is_gone:
            self._queue.clear()
        while self._queue and not self._rest:
            queued = self._queue.popleft()
            queued.is_gone = True
            packed = queued.pack()
            try:
                self._rest = packed[self._channel.send_at_once(packed) :]
            except OSError:
                self._lose()
                return
            if not self._rest:
                self._output_bytes -= queued.n_output
                continue
            self._rest_output_bytes = queued.n_output
            if self.ident is None:
                self.start()
            self._changed.notify_all()

    def _lose(self) -> None:
        self._is_gone = True
        self._queue.clear()
        self._rest = b""
        self._changed.notify_all()
