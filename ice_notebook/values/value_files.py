"""The file that holds one pickled value: its layout, writing it whole or not at all, and mapping it; used in the kernel and in ranks.

The file holds the buffers, each on a 64-byte boundary, the pickle stream, a table of the buffers, and a footer. The footer is written
last and the file is renamed into place, so a reader finds a whole file or none. It is written by `write` alone: on a full file system
that raises, where storing through a mapping would kill the process. The reader maps it privately: a value's pages are read when they
are touched, writing to them changes the reader's copy only, and they stay when the file is unlinked.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import secrets
import struct
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ice_notebook.errors import ResultError

PART_SUFFIX = ".part"  # of a file that is being written; one that stays is of a process that was killed
PIECE_BYTES = 64 << 20  # one write call: an interrupt is served between two
ALIGNMENT = 64  # what torch and numpy align to for their vector instructions
BATCH = 512  # buffers in one write call, below IOV_MAX
HEADROOM_BYTES = 64 << 20  # left free in shared memory, which NCCL and DataLoader workers need as well
HEADROOM_SHARE = 0.05  # the same for a small one: a container's has 64 MiB in all
SMALL_BYTES = 1 << 20  # the system takes up to a millisecond to say how much memory it has: not asked for so little

_MAGIC = b"ICEVAL01"
_FOOTER = struct.Struct("<QQQ8s")  # bytes of the stream, buffers, segments, magic
_NUMBER_BYTES = 8

StrPath = str | os.PathLike[str]


@dataclass(frozen=True)
class SegmentRow:
    """A part of a tensor's storage, as the table says it."""

    storage: int  # which storage, counted from 0
    base: int  # where in the storage the part begins
    size: int
    is_device: bool  # it was on a device, and is to arrive on one


@dataclass(frozen=True)
class Layout:
    """What lies in a file: buffers, then segments, then the stream, then this table."""

    buffer_sizes: tuple[int, ...]
    segments: tuple[SegmentRow, ...]
    stream_bytes: int

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """Return where each buffer, each segment and the stream begin."""
        starts = [0]
        for size in (*self.buffer_sizes, *(row.size for row in self.segments)):
            starts.append(-(-(starts[-1] + size) // ALIGNMENT) * ALIGNMENT)
        return tuple(starts)

    @functools.cached_property
    def size_bytes(self) -> int:
        """Return the size of the whole file."""
        return self.starts[-1] + self.stream_bytes + len(self.encode())

    def encode(self) -> bytes:
        """Return the table and the footer."""
        table = array("Q", self.buffer_sizes)
        for row in self.segments:
            table.extend((row.storage, row.base, row.size, row.is_device))
        return table.tobytes() + _FOOTER.pack(self.stream_bytes, len(self.buffer_sizes), len(self.segments), _MAGIC)


def read_layout(file: BinaryIO, path: StrPath) -> Layout:
    """Return the layout of an open file.

    Raises:
        ResultError: the file is not a whole one of ours.
    """
    size_bytes = file.seek(0, os.SEEK_END)
    if size_bytes < _FOOTER.size:
        raise ResultError.damaged(path, f"it ends after {size_bytes} bytes")
    file.seek(-_FOOTER.size, os.SEEK_END)
    stream_bytes, buffers, segments, magic = _FOOTER.unpack(file.read(_FOOTER.size))
    numbers = buffers + 4 * segments
    if magic != _MAGIC or numbers * _NUMBER_BYTES > size_bytes:
        raise ResultError.damaged(path, "its end is not that of a value's file")
    file.seek(size_bytes - _FOOTER.size - numbers * _NUMBER_BYTES)
    table = array("Q", file.read(numbers * _NUMBER_BYTES))
    rows = (table[at : at + 4] for at in range(buffers, numbers, 4))
    layout = Layout(tuple(table[:buffers]), tuple(SegmentRow(s, b, n, bool(d)) for s, b, n, d in rows), stream_bytes)
    if layout.size_bytes != size_bytes:
        raise ResultError.damaged(path, f"it should have {layout.size_bytes} bytes and has {size_bytes}")
    return layout


def map_privately(file: BinaryIO, size_bytes: int) -> memoryview:
    """Return the head of a file as memory that may be written to without changing the file, and that outlives it."""
    if size_bytes == 0:
        return memoryview(b"")
    return memoryview(mmap.mmap(file.fileno(), size_bytes, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE))


def write_file(path: StrPath, layout: Layout, parts: Callable[[], Iterable[Iterable[memoryview]]]) -> None:
    """Write a file: whole, readable by its owner alone, in place of an older one.

    Args:
        path: its name; until it is whole, it has another one beside it, which ends in PART_SUFFIX.
        layout: of what follows.
        parts: gives the pieces of each buffer, of each segment and of the stream, in this order.

    Raises:
        OSError: it could not be written, ENOSPC when there is no room. Nothing is left behind then.
    """
    part = f"{os.fspath(path)}.{secrets.token_hex(4)}{PART_SUFFIX}"
    try:
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # whatever the umask of the user's code takes away: the notebook is to read it
            _write(descriptor, _with_padding(layout, parts()))
        finally:
            os.close(descriptor)
        os.rename(part, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        raise


def write_first_file(paths: Sequence[StrPath], layout: Layout, parts: Callable[[], Iterable[Iterable[memoryview]]]) -> Path:
    """Write a file to the first of the paths that has room for it, and return that path.

    All but the last are taken to be on shared memory, of which a share is left free. One that cannot be written is passed over.

    Raises:
        OSError: the last path's error, ENOSPC when there is no room. Nothing is left behind then.
    """
    *shared, last = paths
    for path in shared:
        if fits_shared_memory(layout.size_bytes, os.path.dirname(os.fspath(path))):
            with contextlib.suppress(OSError):  # it has become full, or is not there any more: the next will do
                write_file(path, layout, parts)
                return Path(path)
    write_file(last, layout, parts)
    return Path(last)


def fits_shared_memory(size_bytes: int, folder: str) -> bool:
    """Return whether a folder on shared memory has room for a file, and something left for others."""
    try:
        found = os.statvfs(folder or os.curdir)
    except OSError:
        return False
    headroom = min(HEADROOM_BYTES, int(found.f_blocks * found.f_frsize * HEADROOM_SHARE))
    room = found.f_bavail * found.f_frsize
    if size_bytes > SMALL_BYTES:
        # Shared memory is memory: a file that its file system would take can still be more than the machine has.
        room = min(room, _free_memory())
    return size_bytes + headroom <= room


def _free_memory() -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: the file system's word is all there is
        return sys.maxsize


def _with_padding(layout: Layout, parts: Iterable[Iterable[memoryview]]) -> Iterator[memoryview]:
    at = 0
    for start, pieces in zip(layout.starts, parts, strict=True):
        if start > at:
            yield memoryview(bytes(start - at))
        at = start
        for piece in pieces:
            at += piece.nbytes
            yield piece
    yield memoryview(layout.encode())


def _write(descriptor: int, pieces: Iterable[memoryview]) -> None:
    batch: list[memoryview] = []
    size = 0
    for piece in pieces:
        for start in range(0, piece.nbytes, PIECE_BYTES):
            part = piece[start : start + PIECE_BYTES]
            if size + part.nbytes > PIECE_BYTES or len(batch) == BATCH:
                _write_batch(descriptor, batch)
                batch, size = [], 0
            batch.append(part)
            size += part.nbytes
    _write_batch(descriptor, batch)


def _write_batch(descriptor: int, batch: list[memoryview]) -> None:
    done = 0  # pieces of the batch that are written
    while done < len(batch):
        written = os.writev(descriptor, batch[done:])
        while done < len(batch) and written >= batch[done].nbytes:
            written -= batch[done].nbytes
            done += 1
        if written:
            batch[done] = batch[done][written:]
