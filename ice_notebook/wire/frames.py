"""Length-prefixed frames over a stream socket: a kind with JSON fields, and raw bytes."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ice_notebook.wire import exact_json

_HEAD = struct.Struct("!IQ")  # bytes of the header, bytes of the body
_READ_BYTES = 1 << 16


@dataclass(frozen=True)
class Frame:
    """What one side said in one go."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)
    body: bytes = b""


def pack(kind: str, body: bytes | bytearray, fields: dict[str, Any]) -> bytes:
    """Return a frame as it travels."""
    header = exact_json.encode([kind, fields])
    return b"".join((_HEAD.pack(len(header), len(body)), header, body))


def is_readable_within(descriptor: int, timeout_s: float) -> bool:
    """Wait until a descriptor has something to be read, or its other end is closed; False when that does not come in time."""
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    return bool(ready.poll(max(0.0, timeout_s) * 1000))


class Channel:
    """One end of a connection. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._sending = threading.Lock()
        self._received = bytearray()

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 once closed: a selector takes the channel as it is."""
        return self._socket.fileno()

    def send(self, kind: str, body: bytes = b"", **fields: Any) -> None:
        """Send one frame, waiting until the socket has taken it.

        Raises:
            OSError: the other side is gone.
        """
        self.send_packed(pack(kind, body, fields))

    def send_packed(self, frame: bytes) -> None:
        """Send a frame that is packed already, or the rest of one. Raises as `send`."""
        with self._sending:
            self._socket.sendall(frame)

    def send_at_once(self, frame: bytes) -> int:
        """Send as much of a packed frame as the socket takes without waiting, and return how many bytes. Raises as `send`."""
        with self._sending:
            try:
                return self._socket.send(frame, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return 0

    def send_descriptors(self, descriptors: Sequence[int]) -> None:
        """Send descriptors after a frame that announces them. One thread sends when there are any."""
        with self._sending:
            socket.send_fds(self._socket, [b"!"], list(descriptors))

    def receive_descriptors(self, count: int, timeout_s: float | None = None) -> list[int]:
        """Return the descriptors that a frame, just received with `receive`, has announced. Raises as `receive`."""
        self._wait(timeout_s)
        _, descriptors, _, _ = socket.recv_fds(self._socket, 1, count)
        if len(descriptors) < count:  # its sender died in between
            raise EOFError
        return descriptors

    def drop(self) -> None:
        """Close this process's copy of the end, in a forked child: the connection is not its own."""
        os.close(self._socket.detach())

    def receive(self, timeout_s: float | None = None) -> Frame:
        """Wait for the next frame and return it.

        Not a byte more is taken from the socket: a selector that watches it from then on must see the next frame. `timeout_s` is for each
        part of a frame: the other side may be stopped in the middle of one.

        Raises:
            EOFError: the other side has closed its end.
            TimeoutError: it has sent nothing in time.
        """
        while (frame := self._take()) is None:
            self._wait(timeout_s)
            self._read(min(self._missing(), _READ_BYTES))
        return frame

    def receive_ready(self) -> list[Frame]:
        """Read once from a socket that a selector calls readable, and return the frames that are complete now.

        Raises:
            EOFError: the other side has closed its end.
        """
        self._read(_READ_BYTES)
        frames = []
        while (frame := self._take()) is not None:
            frames.append(frame)
        return frames

    def hang_up(self) -> None:
        """End the conversation without closing the descriptor, on which another thread may select: that one sees the end as well."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end; a thread that waits in `receive` on either side gets its `EOFError`."""
        # A close alone never reaches the peer while another thread of this process sits in recv().
        self.hang_up()
        self._socket.close()

    def _wait(self, timeout_s: float | None) -> None:
        if timeout_s is not None and not is_readable_within(self._socket.fileno(), timeout_s):
            raise TimeoutError("the other side does not answer")

    def _read(self, size: int) -> None:
        try:
            chunk = self._socket.recv(size)
        except ConnectionError as error:  # the other side died with bytes of ours unread
            raise EOFError from error
        if not chunk:
            raise EOFError
        self._received += chunk

    def _missing(self) -> int:
        """Return how many bytes are to come before anything more can be said of the next frame."""
        if len(self._received) < _HEAD.size:
            return _HEAD.size - len(self._received)
        header_bytes, body_bytes = _HEAD.unpack_from(self._received)
        return int(_HEAD.size + header_bytes + body_bytes - len(self._received))

    def _take(self) -> Frame | None:
        if len(self._received) < _HEAD.size or self._missing() > 0:
            return None
        header_bytes, body_bytes = _HEAD.unpack_from(self._received)
        end = _HEAD.size + header_bytes + body_bytes
        header = bytes(self._received[_HEAD.size : _HEAD.size + header_bytes])
        body = bytes(self._received[_HEAD.size + header_bytes : end])
        del self._received[:end]
        kind, fields = exact_json.decode(header, list)
        return Frame(kind, fields, body)
