"""Writing all of something to a file, or knowing how much of it the disk did not take.

`os.write` takes less than it is given when a disk gets full, and says so by a number alone. Whatever writes to a descriptor of a file does it
by this module.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ice_notebook.errors import format_size


def write_what_fits(fd: int, data: bytes) -> tuple[int, OSError | None]:
    """Write to a file until all is written or the system refuses more; return how many bytes it has taken, and why not all."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except OSError as error:
            return len(data) - len(view), error
    return len(data), None


def write_all(fd: int, data: bytes) -> None:
    """Write to a file.

    Raises:
        OSError: it did not take all of it. A part may be written.
    """
    _, error = write_what_fits(fd, data)
    if error is not None:
        raise error


def say(text: str) -> None:
    """Write a line to this process's standard error, which is the agent's log in an agent, as far as there is room for it."""
    write_what_fits(2, f"{text.rstrip()}\n".encode(errors="backslashreplace"))


@dataclass
class Loss:
    """How much of something was lost so far, and when that is to be said: at once, whenever it is twice as much, and at the end."""

    size_bytes: int = 0
    why: str = ""
    _told_bytes: int = 0

    def add(self, size_bytes: int, why: str) -> None:
        """Count more."""
        self.size_bytes += size_bytes
        self.why = why

    def is_news(self, *, is_end: bool = False) -> bool:
        """Return whether it is to be said now; from then on it has been."""
        wanted = self._told_bytes + 1 if is_end else max(1, 2 * self._told_bytes)
        if self.size_bytes < wanted:
            return False
        self._told_bytes = self.size_bytes
        return True


class AppendedFile:
    """A log file that is appended to as far as its disk has room. Where something is missing, a line in it says how much."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Make the file, if that is possible now; else with the first output that finds room for it."""
        self._path = path
        self._fd = -1
        self._open()
        self.why = ""  # the system's word for why something is missing, the last time
        self._gap_bytes = 0  # that no line in the file tells of yet
        self._note = b""  # what is left of a line about a gap
        self._is_mid_line = False

    def append(self, data: bytes) -> tuple[bytes, bytes]:
        """Append data; return what the file has got, a line about a gap included, and what of the data it has not."""
        note = self._note or (_note(self._gap_bytes, self.why, is_mid_line=self._is_mid_line) if self._gap_bytes else b"")
        whole = note + data
        error = self._open()
        written = 0
        if error is None:
            written, error = write_what_fits(self._fd, whole)
        lost = data[max(0, written - len(note)) :]
        if written:
            self._gap_bytes = self._gap_bytes if self._note else 0
            self._note = note[written:]
            self._is_mid_line = whole[written - 1 : written] != b"\n"
        if error is not None:
            self._gap_bytes += len(lost)
            self.why = error.strerror or str(error)
        return whole[:written], lost

    def close(self) -> None:
        """Close it."""
        if self._fd >= 0:
            os.close(self._fd)

    def _open(self) -> OSError | None:
        if self._fd < 0:
            try:
                self._fd = os.open(self._path, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
            except OSError as error:
                return error
        return None


def _note(size_bytes: int, why: str, *, is_mid_line: bool) -> bytes:
    newline = b"\r\n" * is_mid_line
    return newline + f"… {format_size(size_bytes)} of output is missing here in the log file: {why}\r\n".encode()
