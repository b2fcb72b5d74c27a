"""Sockets on one address."""

from __future__ import annotations

import errno
import socket

import pytest

from ice_notebook.host.listening import listen


def address_of(sock: socket.socket) -> str:
    with sock:
        return sock.getsockname()[0]


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("127.0.0.2", "127.0.0.2"), ("0.0.0.0", "0.0.0.0"), ("localhost", "127.0.0.1")],
)
def test_it_listens_on_the_address_that_was_given(monkeypatch, host, address):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 0, 0, "", ("127.0.0.1", 0))])
    assert address_of(listen(host, 0)) == address


def test_ones_own_name_that_means_the_loopback_here_listens_where_others_may_come(monkeypatch):
    """Debian's /etc/hosts says 127.0.1.1 for it; other machines find another address."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 0, 0, "", ("127.0.1.1", 0))])
    assert address_of(listen("node-0", 0)) == "0.0.0.0"


def test_an_address_of_another_machine_is_refused_unless_this_one_is_said_to_have_it():
    with pytest.raises(OSError) as error:
        listen("192.0.2.1", 0)
    assert error.value.errno == errno.EADDRNOTAVAIL
    assert address_of(listen("192.0.2.1", 0, is_anywhere=True)) == "0.0.0.0"


def test_a_name_that_nobody_knows_is_told():
    with pytest.raises(socket.gaierror):
        listen("no-such.invalid", 0)
