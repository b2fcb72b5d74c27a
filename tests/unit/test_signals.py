"""What signals do in a process of ours when it starts."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from ice_notebook.host import signals

LOOKED_AT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGQUIT, signal.SIGUSR1, signal.SIGPIPE)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in LOOKED_AT}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_nothing_is_ignored_or_blocked_because_whoever_started_it_does_so():
    for number in LOOKED_AT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGRTMIN})
    signals.reset()
    assert {number: signal.getsignal(number) for number in LOOKED_AT} == {
        **dict.fromkeys(LOOKED_AT, signal.SIG_DFL),
        signal.SIGINT: signal.default_int_handler,
        signal.SIGPIPE: signal.SIG_IGN,  # Python's own
    }
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_handlers_of_this_process_stay():
    def handler(*_: object) -> None:
        pass

    signal.signal(signal.SIGTERM, handler)
    signals.reset()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_in_a_terminal_what_nohup_and_a_shell_have_it_ignore_stays_ignored():
    for number in LOOKED_AT:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    signals.reset(but=signals.A_SHELLS)
    changed = {number for number in LOOKED_AT if signal.getsignal(number) is not signal.SIG_IGN}
    assert changed == {signal.SIGTERM, signal.SIGCHLD}
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
