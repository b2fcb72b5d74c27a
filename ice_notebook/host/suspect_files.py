"""Reading a file that user code had in its hands: it may be of any size, hold anything, or be something else than a file by now."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


def read_suspect(path: Path, most_bytes: int, *, is_end: bool = False) -> bytes:
    """Return the beginning of a file, or its end, and never wait for what stands in its place: a pipe, a terminal, a link to elsewhere.

    Raises:
        OSError: it is not a file, or cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        start = max(0, found.st_size - most_bytes) if is_end else 0
        pieces: list[bytes] = []
        left = most_bytes
        while left and (piece := os.pread(fd, left, start)):
            pieces.append(piece)
            start += len(piece)
            left -= len(piece)
        return b"".join(pieces)
    finally:
        os.close(fd)


def last_words(path: Path, most_characters: int = 300) -> str:
    """Return the last line with anything in it of a text file, cut to a length that a sentence can bear; nothing where there is none."""
    try:
        text = read_suspect(path, 4 * most_characters + 1024, is_end=True).decode(errors="replace")
    except OSError:
        return ""
    line = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
    return line if len(line) <= most_characters else f"{line[: most_characters - 1]}…"
