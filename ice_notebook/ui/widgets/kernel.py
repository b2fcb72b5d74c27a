"""What a widget needs of the kernel that it lives in, and of the texts that it sends."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from ice_notebook.errors import printable
from ice_notebook.host import notebook


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


def can_draw() -> bool:
    """Return whether there is a page, and it is likely to draw our widgets."""
    return notebook.has_page() and not why_no_panel()


def why_no_panel() -> str:
    """Return why no page is likely to draw our widgets; empty when nothing speaks against it.

    A kernel cannot ask its page: one that does not know the versions of a widget shows an error in its place, and says nothing to the kernel.
    """
    if os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Batch":
        return "Kaggle runs this notebook as a whole, without a page"
    if "google.colab.output" in sys.modules:
        return ""  # its page fetches the widgets of any version; anywidget asks it to
    kernels, pages = _version("ipywidgets"), _version("jupyterlab_widgets")
    if kernels.startswith("7.") and pages.startswith("3."):
        return f"this kernel has ipywidgets {kernels}, and JupyterLab has jupyterlab_widgets {pages}, which is for ipywidgets 8"
    return ""


@functools.cache
def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def keep_subshell(comm: Any) -> None:
    """Let a page's messages be handled on the subshell that the page chose, so that a click is heard while a cell runs.

    ipykernel 7.4 sends them to the subshell that the kernel last sent from instead, which for a widget made by a cell is the main shell,
    busy with that cell. The name is private and exists only there; without it nothing needs to be done.
    """
    if hasattr(comm, "_reply_subshell_for"):
        comm._reply_subshell_for = lambda _data, chosen: chosen


def sendable(content: Any) -> Any:
    """Return plain JSON with every text as a page can take it: a server drops a message with a byte that is no UTF-8."""
    if isinstance(content, str):
        return printable(content)
    if isinstance(content, Mapping):
        return {key: sendable(value) for key, value in content.items()}
    return [sendable(value) for value in content] if isinstance(content, list | tuple) else content
