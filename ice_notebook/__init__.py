"""Launch multi-process PyTorch from a notebook cell, under torch's elastic agent.

    %load_ext ice_notebook

    %%elastic_launch devices=cuda:0,1
    def train(launcher):
        ...

Importing this changes nothing in the process, and costs next to nothing: names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ice_notebook._version import __version__ as __version__

if TYPE_CHECKING:
    from ice_notebook.context.current_launcher import get_current_launcher
    from ice_notebook.context.script_results import set_result
    from ice_notebook.errors import RunFailed
    from ice_notebook.kernel.run import Run
    from ice_notebook.ui.launcher import ElasticLauncher
    from ice_notebook.ui.widgets.device_picker import DevicePicker

__all__ = ["DevicePicker", "ElasticLauncher", "Run", "RunFailed", "get_current_launcher", "set_result"]

_HOMES = {
    "DevicePicker": "ice_notebook.ui.widgets.device_picker",
    "ElasticLauncher": "ice_notebook.ui.launcher",
    "Run": "ice_notebook.kernel.run",
    "RunFailed": "ice_notebook.errors",
    "get_current_launcher": "ice_notebook.context.current_launcher",
    "set_result": "ice_notebook.context.script_results",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'ice_notebook' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])


def load_ipython_extension(shell: Any) -> None:
    """Register `%%elastic_launch` and `%elastic_devices`: `%load_ext ice_notebook` calls this."""
    from ice_notebook.ui import magics  # noqa: PLC0415

    magics.load(shell)


def unload_ipython_extension(shell: Any) -> None:
    """Take the magics back: `%unload_ext ice_notebook` calls this."""
    from ice_notebook.ui import magics  # noqa: PLC0415

    magics.unload(shell)
