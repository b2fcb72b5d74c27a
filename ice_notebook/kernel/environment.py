"""The environment that ranks start with: the kernel's, without what ipykernel has put there for itself."""

from __future__ import annotations

from collections.abc import Mapping

# What ipykernel 6 and 7, and the debugger it starts, set in the kernel's environment. Variables with a value given here are removed only
# when they still have that value: another one is the user's.
_KERNELS_OWN: dict[str, str | None] = {
    "JPY_PARENT_PID": None,
    "JPY_SESSION_NAME": None,
    "JPY_INTERRUPT_EVENT": None,
    "FORCE_COLOR": "1",
    "CLICOLOR": "1",
    "CLICOLOR_FORCE": "1",
    "TERM": "xterm-color",
    "PYTHONUNBUFFERED": "1",
}
_KERNELS_PREFIX = "PYDEVD_"
# Programs that ask for a pager when they find a terminal: a rank has one, and nobody to turn the pages.
_PAGERS = ("PAGER", "GIT_PAGER", "MANPAGER", "SYSTEMD_PAGER")
_NO_PAGER = "cat"
_NOTEBOOK_BACKENDS = ("module://matplotlib_inline", "module://ipykernel")
_TERMINAL = "xterm-256color"  # what a rank's pseudo-terminal understands
LOOPBACK = "lo"


def rank_environment(
    environment: Mapping[str, str],
    *,
    n_ranks: int,
    omp_num_threads: int | None,
    extra: Mapping[str, str],
    interface: str | None = LOOPBACK,
) -> dict[str, str]:
    """Return the environment of the ranks.

    Args:
        environment: the kernel's.
        n_ranks: how many ranks share this machine.
        omp_num_threads: what the user asked for; with None several ranks get 1, as torchrun does, unless the variable is set.
        extra: the option `env`, which has the last word.
        interface: the network interface by which the ranks meet, None when it is not known. Gloo is given it, so that it looks up no host
            name. NCCL is given the loopback of a single host only: between hosts it finds the fastest way better than we could.
    """
    own = "JPY_PARENT_PID" in environment
    ours = {name: value for name, value in environment.items() if not (own and _is_kernels(name, value))}
    if environment.get("MPLBACKEND", "").startswith(_NOTEBOOK_BACKENDS):
        ours["MPLBACKEND"] = "Agg"
    if ours.get("TERM", "dumb") == "dumb":
        ours["TERM"] = _TERMINAL
    for pager in _PAGERS:
        ours.setdefault(pager, _NO_PAGER)
    if omp_num_threads is not None:
        ours["OMP_NUM_THREADS"] = str(omp_num_threads)
    elif n_ranks > 1:
        ours.setdefault("OMP_NUM_THREADS", "1")
    if interface is not None:
        ours.setdefault("GLOO_SOCKET_IFNAME", interface)
    if interface == LOOPBACK:
        ours.setdefault("NCCL_SOCKET_IFNAME", LOOPBACK)  # one host: nothing listens beyond it
    return {**ours, **extra}


def interface_of(address: str) -> str | None:
    """Return the network interface of this machine that has an address or a host name's address; None when none has."""
    if address.startswith("127.") or address == "::1":
        return LOOPBACK  # which has all of 127.0.0.0/8, and lists one
    import socket  # noqa: PLC0415

    import psutil  # noqa: PLC0415 - for several nodes only

    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(address, None)}
    except OSError:
        return None
    return next((name for name, each in psutil.net_if_addrs().items() if any(a.address in found for a in each)), None)


def _is_kernels(name: str, value: str) -> bool:
    if name.startswith(_KERNELS_PREFIX):
        return True
    return name in _KERNELS_OWN and _KERNELS_OWN[name] in {None, value}
