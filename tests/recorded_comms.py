"""Comms whose other end is a list, in place of those of a kernel."""

from __future__ import annotations

import json
from typing import Any

import comm
import ipykernel.kernelapp  # noqa: F401 - it chooses the class of comms when it is imported; a test chooses later
import ipywidgets.widgets.widget
import pytest
from comm.base_comm import BaseComm


class RecordingComm(BaseComm):
    """What a widget sends is in `sent`: kind, data as JSON gives it back, and buffers."""

    kernel = object()  # ipywidgets 7 sends nothing without one

    def publish_msg(self, msg_type: str, data: Any = None, metadata: Any = None, buffers: Any = None, **keys: Any) -> None:
        sent = msg_type, json.loads(json.dumps(data or {})), [bytes(buffer) for buffer in buffers or []]
        self.__dict__.setdefault("sent", []).append(sent)


def record_comms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have widgets that are made from now on send to lists."""
    if hasattr(ipywidgets.widgets.widget, "Comm"):  # ipywidgets 7
        monkeypatch.setattr(ipywidgets.Widget.comm, "klass", RecordingComm)
        monkeypatch.setattr(ipywidgets.widgets.widget, "Comm", RecordingComm)
    else:
        monkeypatch.setattr(comm, "create_comm", RecordingComm)
