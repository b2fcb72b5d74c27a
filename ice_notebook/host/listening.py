"""Sockets that listen on one address alone."""

from __future__ import annotations

import errno
import ipaddress
import socket


def listen(host: str, port: int, *, is_anywhere: bool = False) -> socket.socket:
    """Return a socket that listens on the address of a host; port 0 lets the system choose.

    A name that means the loopback here, as a machine's own name often does, means another address elsewhere: such a socket listens on all addresses.
    With `is_anywhere` so does one for an address that no interface of this machine has, as behind a translating router.

    Raises:
        OSError: the port is taken, or the address is not one of this machine.
    """
    family, address = _place(host)
    try:
        return _listen(family, address, port)
    except OSError as error:
        if not is_anywhere or error.errno != errno.EADDRNOTAVAIL:
            raise
    return _listen(family, "", port)


def _place(host: str) -> tuple[socket.AddressFamily, str]:
    host = host.strip("[]")
    try:
        return (socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET), host
    except ValueError:
        pass
    family, *_, place = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    address = str(place[0])
    is_own_name = host != "localhost" and ipaddress.ip_address(address.partition("%")[0]).is_loopback
    return family, "" if is_own_name else address


def _listen(family: socket.AddressFamily, address: str, port: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, port))
        sock.listen(2048)
    except OSError:
        sock.close()
        raise
    return sock
