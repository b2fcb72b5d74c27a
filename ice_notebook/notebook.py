"""What only IPython knows: which cell a file name stands for, whether there is a page to draw on, how something is displayed.

IPython is never imported for this: where it is not loaded there is no notebook.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any


def current_shell() -> Any:
    """Return IPython's shell of this process, None outside IPython."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython is not None and hasattr(ipython, "get_ipython") else None


def has_page() -> bool:
    """Return whether widgets can be shown: whether this is a kernel, not a terminal or a script."""
    return getattr(current_shell(), "kernel", None) is not None


def namespace() -> dict[str, Any]:
    """Return the variables of the notebook, or of the main program."""
    shell = current_shell()
    variables: dict[str, Any] = shell.user_ns if shell is not None else vars(sys.modules["__main__"])
    return variables


def display(shown: object) -> None:
    """Display something below the cell that runs. Call it from the main thread only: from others it lands in whichever cell is newest."""
    from IPython.display import display as show  # noqa: PLC0415

    show(shown)


def current_cell() -> str:
    """Return what tells this execution of a cell from every other; nothing outside a kernel."""
    parent: dict[str, Any] = getattr(current_shell(), "get_parent", dict)() or {}
    return str(parent.get("header", {}).get("msg_id", ""))


def display_before(kind: type, show: Callable[[Any], None]) -> None:
    """Have `show` called whenever an object of a type is about to be displayed, as a cell's value or otherwise."""

    def bundle(shown: Any, include: object = None, exclude: object = None) -> None:  # noqa: ARG001 - IPython's signature
        show(shown)  # nothing is returned: the object's own forms follow

    current_shell().display_formatter.mimebundle_formatter.for_type(kind, bundle)


def cell_label(file_name: str) -> str:
    """Return what a person calls the code of a file name: `Cell In[3]`, else the name itself."""
    shell = current_shell()
    label = shell.compile.format_code_name(file_name) if shell is not None else None
    return " ".join(label) if label else file_name


def cell_sources(file_names: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Return label and text of those files that are cells, so that other processes can show their lines."""
    found = {}
    for name in sorted(file_names):
        text = "" if os.path.exists(name) else "".join(linecache.getlines(name))
        if text:
            found[name] = (cell_label(name), text)
    return found
