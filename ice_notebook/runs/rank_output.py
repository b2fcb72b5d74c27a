"""All that one rank has printed in one attempt, in order: read from its log file, and from memory what a full disk kept out of that.

The agent writes output to the file before it tells anybody of it. So nothing that is told can be missed, however far a reader is behind.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import NamedTuple

from ice_notebook.runs.stream_index import StreamIndex

READ_BYTES = 256 << 10
KEPT_BYTES = 4 << 20  # of what is in no file: it may be for ever


class Piece(NamedTuple):
    """Consecutive output of one stream, or the number of bytes that are lost."""

    data: bytes
    at: int  # where in the file it begins, or would begin
    is_in_file: bool = True
    is_stderr: bool = False
    lost: int = 0


class RankOutput:
    """See the module. One thread feeds, others read, each with a reader of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_file = os.fspath(path) != os.devnull
        self._lock = threading.Lock()
        self._end = 0  # how much the file is known to hold
        self._unlogged: list[Piece] = []  # in the order of their places
        self._kept = 0
        self._index = StreamIndex(path)
        self._fd: int | None = None  # stays open between reads: a file that is removed can still be read

    def __del__(self) -> None:
        self.release()

    def feed(self, data: bytes, missed: int = 0, *, is_kept: bool = True, is_stderr: bool = False) -> None:
        """Take note of new output.

        Args:
            data: what came.
            missed: so much came before it and was not told; it is in the file.
            is_kept: whether the file has it.
            is_stderr: whether it came by a stream of its own.
        """
        with self._lock:
            if not self._has_file:  # what comes is all there is
                self._keep(data, missed, is_stderr=is_stderr)
            elif is_kept:
                self._end += missed + len(data)
            else:
                self._end += missed
                self._keep(data, 0, is_stderr=is_stderr)

    def reader(self, at: int = 0) -> OutputReader:
        """Return a reader of what is in the file from a byte on, and of what came after that."""
        with self._lock:
            return OutputReader(self, at, sum(piece.at < at for piece in self._unlogged))

    def take_all(self) -> None:
        """Take note that the file is complete, whatever was told of it."""
        with self._lock, contextlib.suppress(OSError):  # it was never begun, or is gone
            self._end = max(self._end, os.stat(self._path).st_size if self._has_file else 0)

    def release(self) -> None:
        """Close the file; whoever reads on has it opened again."""
        with self._lock:
            fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def _keep(self, data: bytes, lost: int, *, is_stderr: bool) -> None:
        room = max(0, KEPT_BYTES - self._kept)
        lost += max(0, len(data) - room)
        if lost:
            self._unlogged.append(Piece(b"", self._end, is_in_file=False, lost=lost))
        if room and data:
            self._unlogged.append(Piece(data[-room:], self._end, is_in_file=False, is_stderr=is_stderr))
            self._kept += len(data[-room:])

    def _open(self) -> int | None:
        if self._fd is None and self._has_file:
            with contextlib.suppress(OSError):  # it is gone, or was never made
                self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd


class OutputReader:
    """Reads a rank's output at its own pace."""

    def __init__(self, output: RankOutput, at: int, n_unlogged: int) -> None:
        self._output = output
        self._at = at
        self._n_unlogged = n_unlogged  # pieces from memory that were read
        self._returned: list[Piece] = []  # what was read, and is to be read again

    @property
    def available(self) -> int:
        """Return how many bytes there are that were not read."""
        output = self._output
        with output._lock:
            kept = sum(len(piece.data) for piece in (*output._unlogged[self._n_unlogged :], *self._returned))
            return output._end - self._at + kept

    def read(self, limit: int = READ_BYTES) -> list[Piece]:
        """Return what comes next, about `limit` bytes at most; nothing when all was read."""
        if self._returned:
            pieces, self._returned = self._returned, []
            return pieces
        output = self._output
        with output._lock:
            upcoming = output._unlogged[self._n_unlogged] if self._n_unlogged < len(output._unlogged) else None
            if upcoming is not None and upcoming.at <= self._at:
                self._n_unlogged += 1
                return [upcoming]
            end = output._end if upcoming is None else upcoming.at
            fd = output._open() if self._at < end else None
        wanted = min(limit, end - self._at)
        if wanted <= 0:
            return []
        start = self._at
        data = b""
        if fd is not None:
            with contextlib.suppress(OSError):  # a disk that is gone
                data = os.pread(fd, wanted, start)
        if not data:
            self._at = end
            return [Piece(b"", start, is_in_file=False, lost=end - start)]
        self._at += len(data)
        return [Piece(part, at, is_stderr=is_stderr) for part, at, is_stderr in output._index.split(data, start)]

    def skip(self, n_bytes: int) -> int:
        """Leave out about so many bytes, up to the end of a line if there is one; return how many lines ended in them."""
        lines, skipped, is_at_line = 0, 0, False
        while not is_at_line and (pieces := self.read()):
            for at, piece in enumerate(pieces):
                skipped += len(piece.data)
                if skipped <= n_bytes:
                    lines += piece.data.count(b"\n")
                    continue
                end = piece.data.find(b"\n", max(0, len(piece.data) - (skipped - n_bytes))) + 1
                is_at_line = end > 0
                lines += piece.data.count(b"\n", 0, end or None)
                if is_at_line:
                    rest = piece._replace(data=piece.data[end:], at=piece.at + end * piece.is_in_file)
                    self._returned = [each for each in (rest, *pieces[at + 1 :]) if each.data or each.lost]
                    break
        return lines
