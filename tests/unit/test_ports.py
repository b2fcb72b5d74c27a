"""Ports: whether one is free, and who has it."""

from __future__ import annotations

import os
import socket

import psutil
import pytest

from ice_notebook.host import ports


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_port_that_is_listened_at_is_not_free_and_its_holder_is_named(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        port = server.getsockname()[1]
        assert not ports.is_free(address, port)
        assert ports.describe_holder(port) == f"{psutil.Process().name()} (pid {os.getpid()})"
    assert ports.is_free(address, port)
    assert ports.describe_holder(port) == ""


def test_a_port_whose_holder_may_not_be_looked_at_has_no_name(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with monkeypatch.context() as hidden:
            seen = [found._replace(pid=None) for found in psutil.net_connections("tcp")]
            hidden.setattr(psutil, "net_connections", lambda _: seen)
            assert ports.describe_holder(port) == ""
        monkeypatch.setattr(psutil, "net_connections", lambda _: (_ for _ in ()).throw(PermissionError()))
        assert ports.describe_holder(port) == ""


def test_an_address_of_another_machine_is_left_to_whoever_takes_it():
    assert ports.is_free("192.0.2.1", 1234)
