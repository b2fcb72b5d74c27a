"""The devices that a notebook has set for launches that name none. They hang on IPython's shell, and live as long as it does."""

from __future__ import annotations

from typing import Any

from ice_notebook.devices.grammar import Devices, convert_devices
from ice_notebook.host import notebook

_ATTRIBUTE = "ice_notebook_devices"


def chosen() -> Any:
    """Return what was set: devices, or a picker whose choice of the moment counts. None when nothing was, or outside IPython."""
    return getattr(notebook.current_shell(), _ATTRIBUTE, None)


def choose(devices: Any) -> None:
    """Set devices, or a picker, for launches that name none; None forgets them."""
    setattr(notebook.current_shell(), _ATTRIBUTE, devices)


def picked_devices() -> Devices | None:
    """Return what a launch that names no devices uses; None when nothing is set, or nothing is picked in the picker."""
    found = chosen()
    if found is None or getattr(found, "devices", None) == "":
        return None
    return convert_devices(found)
