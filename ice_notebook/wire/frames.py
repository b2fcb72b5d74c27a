"""Length-prefixed frames over a stream socket: a head, and raw bytes behind it. What they mean is not known here."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

_SIZES = struct.Struct("!IQ")  # bytes of the head, bytes of the body
_READ_BYTES = 1 << 16


class Frame(NamedTuple):
    """What one side said in one go."""

    head: bytes
    body: bytes = b""


def pack(head: bytes, body: bytes | bytearray = b"") -> bytes:
    """Return a frame as it travels."""
    return b"".join((_SIZES.pack(len(head), len(body)), head, body))


def unpack(packed: bytes) -> Frame:
    """Return the frame that is all of these bytes.

    Raises:
        ValueError: they are not one whole frame.
    """
    if len(packed) < _SIZES.size:
        raise ValueError("not a whole frame")
    head_bytes, body_bytes = _SIZES.unpack_from(packed)
    if len(packed) != _SIZES.size + head_bytes + body_bytes:
        raise ValueError("not a whole frame")
    end = _SIZES.size + head_bytes
    return Frame(packed[_SIZES.size : end], packed[end:])


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

    def send_packed(self, frame: bytes) -> None:
        """Send a packed frame, or the rest of one, waiting until the socket has taken it.

        Raises:
            OSError: the other side is gone.
        """
        with self._sending:
            self._socket.sendall(frame)

    def send_at_once(self, frame: bytes) -> int:
        """Send as much of a packed frame as the socket takes without waiting, and return how many bytes. Raises as `send_packed`."""
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
        """Return the descriptors that a frame, just received, has announced. Raises as `receive_frame`."""
        self._wait(timeout_s)
        _, descriptors, _, _ = socket.recv_fds(self._socket, 1, count)
        if len(descriptors) < count:  # its sender died in between
            raise EOFError
        return descriptors

    def drop(self) -> None:
        """Close this process's copy of the end, in a forked child: the connection is not its own."""
        os.close(self._socket.detach())

    def receive_frame(self, timeout_s: float | None = None) -> Frame:
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

    def receive_ready_frames(self) -> list[Frame]:
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
        """Close this end; a thread that waits in `receive_frame` on either side gets its `EOFError`."""
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
        if len(self._received) < _SIZES.size:
            return _SIZES.size - len(self._received)
        return int(_SIZES.size + sum(_SIZES.unpack_from(self._received)) - len(self._received))

    def _take(self) -> Frame | None:
        if len(self._received) < _SIZES.size or self._missing() > 0:
            return None
        end = _SIZES.size + sum(_SIZES.unpack_from(self._received))
        frame = unpack(bytes(self._received[:end]))
        del self._received[:end]
        return frame
