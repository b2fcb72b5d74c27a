"""What only IPython knows: which cell a file name stands for, whether there is a page to draw on, how something is displayed.

IPython is never imported for this: where it is not loaded there is no notebook.
"""

from __future__ import annotations

import functools
import linecache
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

_OF_HISTORY = re.compile(r"_{1,3}|_[0-9]+")  # names of what cells have shown


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


def is_bound(value: object) -> bool:
    """Return whether a variable of the notebook is this very object. IPython's own names for what cells have shown do not count."""
    return any(found is value and not _OF_HISTORY.fullmatch(name) for name, found in list(namespace().items()))


def output_history() -> object:
    """Return where IPython keeps what cells have shown, `Out`; None where there is no notebook."""
    return namespace().get("_oh") if current_shell() is not None else None


def display(shown: object) -> None:
    """Display something below the cell that runs. Call it from the main thread only: from others it lands in whichever cell is newest."""
    from IPython.display import display as show  # noqa: PLC0415

    show(shown)


def current_cell() -> str:
    """Return what tells this execution of a cell from every other; nothing outside a kernel."""
    parent: dict[str, Any] = getattr(current_shell(), "get_parent", dict)() or {}
    return str(parent.get("header", {}).get("msg_id", ""))


def lines_above(text: str) -> int:
    """Return how many lines of the cell that runs stand above its end, this text: the magic's line, and those of magics above it."""
    shell = current_shell()
    parent: dict[str, Any] = getattr(shell, "get_parent", dict)() or {}
    whole = parent.get("content", {}).get("code") or next(reversed(shell.history_manager.input_hist_raw), "")
    whole, text = whole.rstrip(), text.rstrip()
    return whole.removesuffix(text).count("\n") if text and whole.endswith(f"\n{text}") else 1


def display_before(kind: type, show: Callable[[Any], None]) -> None:
    """Have `show` called whenever an object of a type is about to be displayed, as a cell's value or otherwise."""

    def bundle(shown: Any, include: object = None, exclude: object = None) -> None:  # noqa: ARG001 - IPython's signature
        show(shown)  # nothing is returned: the object's own forms follow

    current_shell().display_formatter.mimebundle_formatter.for_type(kind, bundle)


def running_cell() -> str:
    """Return what a person calls the cell that runs: `Cell In[3]`."""
    return _label(_running_number())


def name_cell(source: str, raw: str) -> str:
    """Have IPython know the code of the cell that runs, and return the file name of that code.

    Args:
        source: the code, as Python compiles it.
        raw: what a person has written.
    """
    number = _running_number()
    name = str(current_shell().compile.cache(source, number, raw_code=raw))
    _cells_named_here()[name] = number
    return name


def _running_number() -> int:
    return int(current_shell().displayhook.prompt_count)  # `execution_count` is one ahead in IPython 9


def cell_label(file_name: str) -> str:
    """Return what a person calls the code of a file name: `Cell In[3]`, else the name itself."""
    shell = current_shell()
    if shell is None:
        return file_name
    if hasattr(shell.compile, "format_code_name"):
        label = shell.compile.format_code_name(file_name)
        return " ".join(label) if label else file_name
    number = _cells_named_here().get(file_name) or _number_in_history(shell, file_name)
    return _label(number) if number is not None else file_name


def _label(number: int) -> str:
    return f"Cell In[{number}]"


@functools.cache
def _cells_named_here() -> dict[str, int]:
    """Return the numbers of cells by their file names, of those that `name_cell` has named. IPython 7 keeps none."""
    return {}


def _number_in_history(shell: Any, file_name: str) -> int | None:
    """Return the number of the newest cell that has the code of a file name: IPython 7 keeps codes and numbers apart."""
    text = "".join(linecache.getlines(file_name)).strip()
    codes = shell.history_manager.input_hist_parsed
    return next((number for number in range(len(codes) - 1, 0, -1) if codes[number].strip() == text), None) if text else None


class ShownNames:
    """By which file name the code of a cell is known in the ranks: `Cell In[3]`, which warnings and tracebacks there then show.

    Cells that have one label, as one cell inside of another has, keep their own names but for the first.
    """

    def __init__(self) -> None:
        self._files: dict[str, str] = {}  # by the name that is shown
        self._shown: dict[str, str] = {}  # the other way round

    def __call__(self, file_name: str) -> str:
        if file_name not in self._shown:
            label = cell_label(file_name)
            self._shown[file_name] = label if self._files.setdefault(label, file_name) == file_name else file_name
        return self._shown[file_name]

    def sources(self, file_names: Iterable[str]) -> dict[str, tuple[str, str, str]]:
        """Return label, text and own file name of those files that are cells, by the name that is shown."""
        found = {}
        for name in sorted(file_names):
            text = "" if os.path.exists(name) else "".join(linecache.getlines(name))
            if text:
                found[self(name)] = (cell_label(name), text, name)
        return found
