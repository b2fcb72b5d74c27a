"""Files on their way from one machine of a run to another: in pieces, and under their name only when they are whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ice_notebook.values.value_files import PART_SUFFIX, fits_shared_memory
from ice_notebook.wire.messages import MessageChannel
from ice_notebook.wire.node_messages import Piece

PIECE_BYTES = 1 << 20  # other messages go in between


def send_file(channel: MessageChannel[Any], path: Path, what: str, *, attempt: int = -1, rank: int = -1) -> None:
    """Send a file in pieces, which say what it is.

    Raises:
        OSError: it cannot be read, or the other side is gone.
    """
    with path.open("rb") as file:
        left = size_bytes = os.fstat(file.fileno()).st_size
        while True:
            piece = file.read(min(PIECE_BYTES, left)) if left else b""
            if left and not piece:
                raise EOFError  # it was cut short meanwhile
            left -= len(piece)
            channel.send(Piece(what=what, attempt=attempt, rank=rank, size_bytes=size_bytes, is_last=not left, body=piece))
            if not left:
                return


class IncomingFile:
    """A file that is being received. A write that fails is remembered, and what still comes of the file is dropped."""

    def __init__(self, places: Sequence[Path], size_bytes: int) -> None:
        """Take the first of the places that has room; all but the last are on shared memory."""
        *shared, last = places
        self.path = next((path for path in shared if fits_shared_memory(size_bytes, str(path.parent))), last)
        self.error: OSError | None = None
        self._part = self.path.with_name(self.path.name + PART_SUFFIX)
        self._file = open(os.open(self._part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600), "wb")  # noqa: SIM115

    def take(self, piece: Piece) -> bool:
        """Write a piece, and return whether it was the last: the file is then in its place, unless there is an `error`."""
        try:
            if self.error is None:
                self._file.write(piece.body)
            if piece.is_last:
                self._file.close()
                if self.error is None:
                    self._part.rename(self.path)
        except OSError as error:
            self.error = error
        if piece.is_last and self.error is not None:
            self.drop()
        return piece.is_last

    def drop(self) -> None:
        """Leave nothing of it."""
        try:
            self._file.close()
        except OSError as error:  # what was buffered did not fit either
            self.error = error
        self._part.unlink(missing_ok=True)
