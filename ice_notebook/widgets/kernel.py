"""What a widget needs of the kernel that it lives in."""

from __future__ import annotations

import functools
import re
import sys
from typing import Any


def kernel_id() -> str:
    """Return the id under which the Jupyter server knows this kernel, or nothing where there is none."""
    if "ipykernel.kernelapp" not in sys.modules:  # importing it has effects on every widget of the process
        return ""
    return _kernel_id()


@functools.cache
def _kernel_id() -> str:
    from ipykernel.connect import get_connection_file  # noqa: PLC0415

    try:
        found = re.search(r"kernel-([0-9a-fA-F-]{36})\.json$", get_connection_file())
    except RuntimeError:  # ipykernel is imported, and this process is no kernel
        return ""
    return found[1] if found else ""


def keep_subshell(comm: Any) -> None:
    """Let a page's messages be handled on the subshell that the page chose, so that a click is heard while a cell runs.

    ipykernel 7.4 sends them to the subshell that the kernel last sent from instead, which for a widget made by a cell is the main shell,
    busy with that cell. The name is private and exists only there; without it nothing needs to be done.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _data, chosen: chosen
