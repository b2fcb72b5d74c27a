"""The foot of a terminal: some lines below all others, which are drawn over in place."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

from ice_notebook.terminal import plain_text

_WIDTH = 80  # where a terminal does not say
_ERASE_BELOW = "\r\x1b[J"


class Foot:
    """Writes lines to a terminal and keeps others below them. Whoever writes there meanwhile must erase the foot first."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: tuple[str, ...] = ()

    def write(self, lines: Sequence[str], foot: Sequence[str]) -> None:
        """Write lines for good, and the foot anew if it changed or had to make room. An empty foot is erased."""
        width = self._width() - 1  # a full line would make some terminals wrap
        wanted = tuple(plain_text(line)[:width] for line in foot)
        if not lines and wanted == self._shown:
            return
        up = f"\x1b[{len(self._shown) - 1}A" if len(self._shown) > 1 else ""
        erase = up + _ERASE_BELOW if self._shown else ""
        self._stream.write(erase + "".join(f"{line}\n" for line in lines) + "\n".join(wanted))
        self._stream.flush()
        self._shown = wanted

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _WIDTH
        except (OSError, ValueError):  # it is no terminal of this machine's
            return _WIDTH
