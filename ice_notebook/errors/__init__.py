"""Every message that can refuse something.

These are the exceptions that ice_notebook raises, with their sentences: a file for each contract that raises them, `errors.nodes` for what is between
machines. Each derives from `IceNotebookError` and from the built-in that a caller would expect. `__init__` takes just the message, so that an
exception survives pickling on its way from a rank; what else it knows is set on it by the named constructors.
"""

from __future__ import annotations

from ice_notebook.errors.base import IceNotebookError, UnknownFormWarning
from ice_notebook.errors.cells import SUPPORTED_LINE_MAGICS, CellError, CellSyntaxError
from ice_notebook.errors.devices import DeviceError
from ice_notebook.errors.launches import FrozenError, LaunchError, LauncherValueError, LibraryError
from ice_notebook.errors.options import OptionError
from ice_notebook.errors.payloads import LoadError, PayloadError, Refusal, ResultError
from ice_notebook.errors.runs import ControlError, RunFailed, RunStopped
from ice_notebook.errors.scripts import ScriptError
from ice_notebook.errors.words import (
    cut,
    describe_error,
    describe_kind,
    excerpt_of_syntax_error,
    format_size,
    is_for_want_of_room,
    join,
    options_with_dashes,
    printable,
    quote,
    reason_of,
    suggest,
    written,
)

__all__ = [
    "SUPPORTED_LINE_MAGICS",
    "CellError",
    "CellSyntaxError",
    "ControlError",
    "DeviceError",
    "FrozenError",
    "IceNotebookError",
    "LaunchError",
    "LauncherValueError",
    "LibraryError",
    "LoadError",
    "OptionError",
    "PayloadError",
    "Refusal",
    "ResultError",
    "RunFailed",
    "RunStopped",
    "ScriptError",
    "UnknownFormWarning",
    "cut",
    "describe_error",
    "describe_kind",
    "excerpt_of_syntax_error",
    "format_size",
    "is_for_want_of_room",
    "join",
    "options_with_dashes",
    "printable",
    "quote",
    "reason_of",
    "suggest",
    "written",
]

# This is where users find them, and where tracebacks and pickles name them.
for _exported in __all__:
    if isinstance(globals()[_exported], type):
        globals()[_exported].__module__ = __name__
