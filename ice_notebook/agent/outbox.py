"""What the agent tells the kernel, without ever waiting for it: a thread sends, output is bounded, everything else is not dropped."""

from __future__ import annotations

import collections
import threading
from dataclasses import dataclass, field
from typing import Any

from ice_notebook.frames import Channel

OUTPUT_LIMIT_BYTES = (
    512 << 10
)  # beyond this the kernel is told only how much it missed: the log files have it all, and what comes is new
_COALESCED_BYTES = 1 << 20


@dataclass
class _Message:
    kind: str
    body: bytearray
    fields: dict[str, Any] = field(default_factory=dict)


class Outbox(threading.Thread):
    """Sends frames to the kernel in order."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(name="ice-outbox", daemon=True)
        self._channel = channel
        self._queue: collections.deque[_Message] = collections.deque()
        self._changed = threading.Condition()
        self._output_bytes = 0
        self._missed: dict[tuple[int, int], int] = {}
        self._progress: dict[tuple[int, int], _Message] = {}  # the last that was queued of each rank
        self._is_gone = False

    def post(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        """Queue a frame that must arrive."""
        with self._changed:
            self._queue.append(_Message(kind, bytearray(body), fields))
            self._changed.notify()

    def post_output(self, attempt: int, rank: int, output: bytes) -> None:
        """Queue output of a rank; what does not fit is counted and the count sent later."""
        source = attempt, rank
        with self._changed:
            if self._output_bytes > OUTPUT_LIMIT_BYTES:
                self._missed[source] = self._missed.get(source, 0) + len(output)
                return
            self._output_bytes += len(output)
            missed = self._missed.pop(source, 0)
            last = self._queue[-1] if self._queue else None
            fields = {"attempt": attempt, "rank": rank, "missed": missed}
            if last is not None and last.kind == "output" and not missed and self._continues(last, source):
                last.body += output
                return
            self._queue.append(_Message("output", bytearray(output), fields))
            self._changed.notify()

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
            self._changed.notify()

    def drain(self, timeout_s: float) -> None:
        """Wait until all is sent, the kernel is gone, or the time is over."""
        with self._changed:
            for (attempt, rank), missed in self._missed.items():
                self._queue.append(_Message("output", bytearray(), {"attempt": attempt, "rank": rank, "missed": missed}))
            self._missed.clear()
            self._changed.notify()
            self._changed.wait_for(lambda: self._is_gone or not self._queue, timeout_s)

    def run(self) -> None:
        """Send until the kernel is gone."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue)
                # It stays in the queue until it is sent: `drain` waits for that. A message that is being sent must not grow any more.
                message = self._queue[0]
                kind, message.kind = message.kind, ""
                body = bytes(message.body)
            try:
                self._channel.send(kind, body, **message.fields)
            except OSError:
                with self._changed:
                    self._is_gone = True
                    self._queue.clear()
                    self._changed.notify_all()
                return
            with self._changed:
                self._queue.popleft()
                if kind == "output":
                    self._output_bytes -= len(body)
                self._changed.notify_all()

    def _continues(self, last: _Message, source: tuple[int, int]) -> bool:
        return (last.fields["attempt"], last.fields["rank"]) == source and len(last.body) < _COALESCED_BYTES
