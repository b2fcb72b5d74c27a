"""Ports of this machine: whether one is free, and which process has it when it is not."""

from __future__ import annotations

import errno
import socket


def is_free(address: str, port: int) -> bool:
    """Return whether a server may listen there. An address that is none of this machine's counts as free: who takes it will say so."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a connection of yesterday does not hold it
        try:
            probe.bind((address.strip("[]"), port))
            probe.listen(1)
        except OSError as error:
            return error.errno != errno.EADDRINUSE
    return True


def describe_holder(port: int) -> str:
    """Return who listens at a port, as `python (pid 4711)`; empty when it cannot be seen from here, as with another user's process."""
    import psutil  # noqa: PLC0415 - only a refusal needs it

    try:
        found = psutil.net_connections("tcp")
    except (OSError, psutil.Error):  # a hardened /proc
        return ""
    for connection in found:
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid is not None:
            try:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            except psutil.Error:  # gone meanwhile
                return ""
    return ""
