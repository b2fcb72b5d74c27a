"""Which parts of a rank's log came by its stderr, where a launcher keeps the two streams apart: a small file beside the log.

A line says where in the log a stream begins: `1234 2`. Where there is no such file, nobody has told the streams apart. The agent writes, in its
io thread; whoever shows the output reads.
"""

from __future__ import annotations

import bisect
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ice_notebook.host.writing import write_all

NAME = "streams"
STDOUT, STDERR = 1, 2


class StreamIndexWriter:
    """Notes which stream comes next, before that is written to the log."""

    def __init__(self, log: Path) -> None:
        self._fd = os.open(log.with_name(NAME), os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        self._last = STDOUT  # which a log begins with

    def note(self, std: int, at: int) -> None:
        """Say that what follows in the log from a byte on is of a stream."""
        if std != self._last:
            with contextlib.suppress(OSError):  # the disk is full: the next output says it again
                write_all(self._fd, b"%d %d\n" % (at, std))
                self._last = std

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class StreamIndex:
    """Tells the streams of a log apart."""

    def __init__(self, log: Path) -> None:
        self._path = log.with_name(NAME)
        self._offset = 0  # how much of the file was read
        self._starts: list[int] = [0]
        self._stds: list[int] = [STDOUT]

    def split(self, data: bytes, start: int) -> Iterator[tuple[bytes, int, bool]]:
        """Yield what was read of the log from a byte on in parts of one stream each: where a part begins, and whether that is stderr."""
        self._read()
        end = start + len(data)
        at = bisect.bisect_right(self._starts, start) - 1
        while start < end:
            stop = min(end, self._starts[at + 1]) if at + 1 < len(self._starts) else end
            if stop > start:
                yield data[len(data) - (end - start) :][: stop - start], start, self._stds[at] == STDERR
            start = max(start, stop)
            at += 1

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except OSError:  # there is one stream
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):  # half of one, from when the disk was full
                at, std = map(int, line.split())
                if at >= self._starts[-1]:
                    self._starts.append(at)
                    self._stds.append(std)
