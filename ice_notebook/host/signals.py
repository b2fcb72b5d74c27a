"""What signals do in a process of ours when it starts, whatever they do in the one that has started it: exec hands that on."""

from __future__ import annotations

import signal
from collections.abc import Container

_PYTHONS = frozenset({signal.SIGPIPE, signal.SIGXFSZ})  # Python ignores them itself


def reset(*, but: Container[int] = _PYTHONS) -> None:
    """Have no signal blocked, and none ignored but those given."""
    for number in signal.valid_signals():
        if number not in but and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


class _AllBut:
    """All signals but some."""

    def __init__(self, *numbers: signal.Signals) -> None:
        self._numbers = numbers

    def __contains__(self, number: object) -> bool:
        return number not in self._numbers


# For a program in a terminal: what nohup, or a shell with &, has it ignore stays ignored. SIGTERM ends it, as it ends torchrun.
A_SHELLS = _AllBut(signal.SIGTERM, signal.SIGCHLD)
