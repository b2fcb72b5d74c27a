"""What the agent tells the kernel, without ever waiting for it: output is bounded, everything else is not dropped."""

from __future__ import annotations

import collections
import threading
from dataclasses import dataclass, field
from typing import Any

from ice_notebook.wire.frames import Channel, pack

# Beyond this the kernel is told only how much it missed: the log files have it all, and what comes is new.
OUTPUT_LIMIT_BYTES = 512 << 10
_COALESCED_BYTES = 1 << 20


@dataclass
class _Message:
    kind: str
    body: bytearray
    fields: dict[str, Any] = field(default_factory=dict)


class Outbox(threading.Thread):
    """Sends frames to the kernel in order: at once as long as the socket takes them, the rest in a thread, which alone may wait.

    Were each frame the thread's, a launch would wait up to a millisecond for the interpreter's lock with each.
    """

    def __init__(self, channel: Channel) -> None:
        super().__init__(name="ice-outbox", daemon=True)
        self._channel = channel
        self._queue: collections.deque[_Message] = collections.deque()
        self._changed = threading.Condition()
        self._rest = b""  # of the frame that the socket has not taken whole
        self._rest_output_bytes = 0  # that it holds of output
        self._output_bytes = 0
        self._missed: dict[tuple[int, int], int] = {}
        self._progress: dict[tuple[int, int], _Message] = {}  # the last that was queued of each rank
        self._is_gone = False

    def post(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        """Queue a frame that must arrive."""
        with self._changed:
            self._queue.append(_Message(kind, bytearray(body), fields))
            self._send()

    def post_later(self, kind: str, body: bytes = b"") -> None:
        """Queue a frame that goes with the next one, which is about to come: the kernel has better to do than to wake up for it alone."""
        with self._changed:
            self._queue.append(_Message(kind, bytearray(body)))

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
            last = self._queue[-1] if self._queue else None
            fields = _fields_of_output(attempt, rank, missed, is_kept=is_kept, is_stderr=is_stderr)
            if last is not None and last.kind == "output" and not missed and _continues(last, fields):
                last.body += output
                return
            self._queue.append(_Message("output", bytearray(output), fields))
            self._send()

    def post_progress(self, attempt: int, rank: int, bars: Any) -> None:
        """Queue how far a rank is; what is still queued of it is replaced."""
        source = attempt, rank
        with self._changed:
            last = self._progress.get(source)
            if last is not None and last.kind:
                last.fields["bars"] = bars
                return
            self._progress[source] = _Message("progress", bytearray(), {"attempt": attempt, "rank": rank, "bars": bars})
            self._queue.append(self._progress[source])
            self._send()

    def drain(self, timeout_s: float) -> None:
        """Wait until all is sent, the kernel is gone, or the time is over."""
        with self._changed:
            for (attempt, rank), missed in self._missed.items():
                self._queue.append(_Message("output", bytearray(), _fields_of_output(attempt, rank, missed)))
            self._missed.clear()
            self._send()
            self._changed.wait_for(lambda: self._is_gone or not (self._queue or self._rest), timeout_s)

    def run(self) -> None:
        """Send what the socket does not take at once, until the kernel is gone."""
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
                    self._lose_kernel()
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
            message = self._queue.popleft()
            frame = pack(message.kind, message.body, message.fields)
            n_output = len(message.body) if message.kind == "output" else 0
            message.kind = ""  # it is on its way, and must not change any more
            try:
                self._rest = frame[self._channel.send_at_once(frame) :]
            except OSError:
                self._lose_kernel()
                return
            if self._rest:
                self._rest_output_bytes = n_output
                self._changed.notify_all()
            else:
                self._output_bytes -= n_output

    def _lose_kernel(self) -> None:
        self._is_gone = True
        self._queue.clear()
        self._rest = b""
        self._changed.notify_all()


def _continues(last: _Message, fields: dict[str, Any]) -> bool:
    """Return whether output goes on where the last message has ended."""
    return {**last.fields, "missed": 0} == fields and len(last.body) < _COALESCED_BYTES


def _fields_of_output(attempt: int, rank: int, missed: int, *, is_kept: bool = True, is_stderr: bool = False) -> dict[str, Any]:
    fields = {"attempt": attempt, "rank": rank, "missed": missed}
    return fields if is_kept else {**fields, "is_kept": False, "is_stderr": is_stderr}
