"""One of a launcher's standard streams: a terminal, a pipe, a file, or what a notebook has in its place. Whatever happens to it, a run goes on.

What cannot be written now waits. A reader that is gone, a disk that is full, a terminal that somebody has paused: each is known by its own word.
"""

from __future__ import annotations

import errno
import io
import os
import select
from typing import TextIO

_PIPE_BYTES = 4096  # a pipe that can be written to has room for so many
_FILE_BYTES = 1 << 20
_WITHOUT_SCREEN = {"", "dumb", "unknown"}  # values of TERM
# Nobody reads any more, or nobody ever will; other faults, such as a full disk, may pass.
_GONE = {errno.EPIPE, errno.EIO, errno.EBADF, errno.ENXIO, errno.ECONNRESET, errno.ESHUTDOWN, errno.ENOTCONN, errno.EINVAL}


class Outlet:
    """Takes text and bytes, and sends them as far as that is possible without waiting."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fd = _descriptor_of(stream)
        self._waiting = bytearray()
        self._texts: list[str] = []  # for a stream without a descriptor
        self.encoding = getattr(stream, "encoding", None) or "utf-8"
        self.is_terminal = stream.isatty() and os.environ.get("TERM", "") not in _WITHOUT_SCREEN
        self.has_colours = self.is_terminal
        self.is_gone = False  # nobody reads it
        self.has_lost_reader = False  # somebody did
        self.fault = ""  # why what waits cannot be written, the last time that was so
        if self._fd is not None:
            self._chunk_bytes = _PIPE_BYTES if _may_block(self._fd) else _FILE_BYTES
            self._flush_stream()

    def fileno(self) -> int:
        """Return the descriptor of the stream.

        Raises:
            OSError, ValueError: it has none.
        """
        return self._stream.fileno()

    def write(self, text: str) -> None:
        """Take text; what the stream cannot encode is written as an escape."""
        if self._fd is None:
            self._texts.append(text)
        else:
            self._waiting += text.encode(self.encoding, errors="backslashreplace")

    def write_bytes(self, data: bytes) -> None:
        """Take bytes as they are."""
        if self._fd is None:
            self._texts.append(data.decode(errors="replace"))
        else:
            self._waiting += data

    def flush(self) -> None:
        """Do nothing: `send` does."""

    def send(self) -> bool:
        """Write what waits, as far as that goes without waiting; return whether all is written, or nobody is there to read it."""
        if self.is_gone:
            self._waiting.clear()
            self._texts.clear()
            return True
        if self._fd is None:
            return self._send_texts()
        while self._waiting:
            if not _is_writable(self._fd):
                return False
            # Whole lines where that is possible: what others write to the same pipe then stands between lines.
            end = self._waiting.rfind(b"\n", 0, self._chunk_bytes) + 1 or self._chunk_bytes
            try:
                written = os.write(self._fd, memoryview(self._waiting)[:end])
            except BlockingIOError:  # somebody has made it so, and is slow
                return False
            except OSError as error:
                if error.errno in _GONE:
                    self._lose(error)
                    return True
                self.fault = error.strerror or str(error)
                return False
            del self._waiting[:written]
            self.fault = ""
        return True

    def wait(self, timeout_s: float) -> None:
        """Wait until more can be written, for so long at most."""
        if self._fd is not None and not self.fault:
            poller = select.poll()
            poller.register(self._fd, select.POLLOUT)
            poller.poll(1000 * timeout_s)

    def _send_texts(self) -> bool:
        text = "".join(self._texts)
        self._texts.clear()
        if text:
            try:
                self._stream.write(text)
                self._stream.flush()
            except UnicodeEncodeError:
                self._write_escaped(text)
            except (OSError, ValueError) as error:  # the terminal is gone, or somebody has closed the stream
                self._lose(error)
        return True

    def _write_escaped(self, text: str) -> None:
        try:
            self._stream.write(text.encode(self.encoding, errors="backslashreplace").decode(self.encoding))
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._lose(error)

    def _flush_stream(self) -> None:
        """Let what the program has printed itself come first."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            if getattr(error, "errno", errno.EBADF) in _GONE:
                self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.is_gone = True
        self.has_lost_reader = isinstance(error, BrokenPipeError | ConnectionResetError)
        self._waiting.clear()
        self._texts.clear()


def is_same_place(one: TextIO, other: TextIO) -> bool:
    """Return whether two streams go to one place: a terminal, a pipe, or a file."""
    try:
        return os.path.samestat(os.fstat(one.fileno()), os.fstat(other.fileno()))
    except (OSError, ValueError):  # a stream without a descriptor
        return one is other


def _descriptor_of(stream: TextIO) -> int | None:
    """Return the descriptor that a text stream of Python's writes to; None where something else is in between."""
    if not isinstance(stream, io.TextIOWrapper):
        return None
    raw = stream.buffer.raw if isinstance(stream.buffer, io.BufferedWriter) else stream.buffer
    return raw.fileno() if isinstance(raw, io.FileIO) else None


def _may_block(fd: int) -> bool:
    try:
        return not os.path.isfile(f"/dev/fd/{fd}")
    except OSError:
        return True


def _is_writable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    return bool(poller.poll(0))
