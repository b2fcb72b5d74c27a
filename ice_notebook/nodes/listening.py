"""Sockets that listen on one address alone."""

from __future__ import annotations

import socket


def listen(address: str, port: int) -> socket.socket:
    """Return a listening socket on one address; port 0 lets the system choose.

    Raises:
        OSError: the port is taken, or the address is not one of this machine.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.strip("[]"), port))
        sock.listen(2048)
    except OSError:
        sock.close()
        raise
    return sock
