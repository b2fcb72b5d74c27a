"""The texts of cells in a process that runs their code: by the file names that the code has, though there are no such files."""

from __future__ import annotations

import linecache
from collections.abc import Mapping

_known: dict[str, str] = {}


def know_sources(texts: Mapping[str, str]) -> None:
    """Make texts known to tracebacks, inspect and torch.compile."""
    for file_name, text in texts.items():
        # No modification time: linecache then never asks the file system about a file that does not exist.
        linecache.cache[file_name] = (len(text), None, text.splitlines(keepends=True), file_name)
    _known.update(texts)


def known_sources() -> dict[str, str]:
    """Return the texts that this process has been given, for one that it starts."""
    return dict(_known)
