"""Compiled Python as a script: how a file is known for it, and why one cannot be run here."""

from __future__ import annotations

import importlib.util

_SUFFIX = ".pyc"
_HEAD_BYTES = 16  # magic number, flags, and what the source was


def is_bytecode(path: str) -> bool:
    """Return whether Python takes a file for compiled: by its name, or by how it begins."""
    if path.endswith(_SUFFIX):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(4) == importlib.util.MAGIC_NUMBER
    except OSError:  # said by whoever reads it
        return False


def fault_of(path: str) -> str:
    """Return why a compiled file cannot be run by this Python, nothing when it can.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        head = file.read(_HEAD_BYTES)
    if head[:4] != importlib.util.MAGIC_NUMBER:
        return "it was compiled by another version of Python"
    return "" if len(head) == _HEAD_BYTES else "it ends in its head"
