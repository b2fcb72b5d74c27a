"""What tells a helper process that its owner is gone, whatever the helper does: it may be stopped, or wait in native code.

The owner holds the writing end of a pipe for as long as it lives. The helper asks the system for a signal at the end of the pipe: one that
it need not be awake for.
"""

from __future__ import annotations

import fcntl
import functools
import os
import select
import signal

_VARIABLE = "ICE_NOTEBOOK_LIFELINE"  # the descriptor of the reading end; taken out of the environment by whoever takes hold


def lifeline() -> int:
    """Return the reading end of this process's pipe, for the helpers that it starts."""
    return _lifeline_of(os.getpid())


@functools.cache
def _lifeline_of(_pid: int) -> int:  # a forked child has one of its own
    reader, writer = os.pipe2(os.O_CLOEXEC)
    # A child that this process forks is not the owner: with its copy open the helpers would live as long as it does.
    os.register_at_fork(after_in_child=functools.partial(_close, writer))
    return reader


def environment_of(reader: int) -> dict[str, str]:
    """Return what a helper that is started with this descriptor finds in its environment."""
    return {_VARIABLE: str(reader)}


def take_hold(number: signal.Signals, reader: int | None = None) -> int | None:
    """Have the system send this process a signal when its owner ends: SIGKILL, or SIGCONT for one that sees the rest by itself.

    Returns the descriptor for processes that this one forks, which take hold by it themselves; None when there is no owner.
    """
    if reader is None:
        if (told := os.environ.pop(_VARIABLE, None)) is None:
            return None
        reader = int(told)
        os.set_inheritable(reader, False)
    # Opened anew: whom a pipe's end sends a signal is kept with the opening, which a fork and an exec share with their parent.
    own = os.open(f"/proc/self/fd/{reader}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(own, fcntl.F_SETSIG, number)
    fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([own], [], [], 0)[0]:  # it was gone before
        os.kill(os.getpid(), number)
    return reader


def _close(writer: int) -> None:
    try:
        os.close(writer)
    except OSError:  # that child has closed everything itself
        return
